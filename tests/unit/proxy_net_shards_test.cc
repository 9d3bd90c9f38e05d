// Several shards of one device: what they share, and how flows go from one to another.
#include "plugins/proxy-net/flow/state.h"
#include "tests/unit/proxy_net_flow_fixture.h"

namespace virtbay::proxy_net {
namespace {

TEST(SharedFlowsTest, ABucketHasOneOwner) {
  SharedFlows shared(FlowLimits(), 2, SipKey{1, 2});
  ASSERT_TRUE(shared.sharded());
  EXPECT_EQ(shared.OwnerOf(7), SharedFlows::kNobody);
  EXPECT_FALSE(shared.IsPinned(7));
  EXPECT_TRUE(shared.TakeFree(7, 1));
  EXPECT_FALSE(shared.TakeFree(7, 0));
  EXPECT_FALSE(shared.TakeFree(7, 1));
  EXPECT_EQ(shared.OwnerOf(7), 1);
  shared.Pin(7, 1, true);
  EXPECT_EQ(shared.OwnerOf(7), 1);
  EXPECT_TRUE(shared.IsPinned(7));
  shared.Pin(7, 1, false);
  EXPECT_FALSE(shared.IsPinned(7));
  shared.PassTo(7, 0);
  EXPECT_EQ(shared.OwnerOf(7), 0);
  EXPECT_EQ(shared.OwnerOf(8), SharedFlows::kNobody);
}

TEST(SharedFlowsTest, BudgetsAreForAllTogether) {
  Budget budget(3);
  EXPECT_TRUE(budget.Take(2));
  EXPECT_FALSE(budget.Take(2));
  EXPECT_TRUE(budget.Take());
  EXPECT_FALSE(budget.Take());
  budget.Give(3);
  EXPECT_TRUE(budget.Take(3));

  FlowRate rate(4);
  const uint64_t now = 100 * kSec;
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(rate.Take(now)) << i;
  EXPECT_FALSE(rate.Take(now));
  EXPECT_TRUE(rate.Take(now + kSec / 4));
  EXPECT_FALSE(rate.Take(now + kSec / 4));
}

// The fixture's shard is the first; this has a second one with the same budgets.
class ShardsTest : public FlowTest {
 protected:
  class OtherHost : public FakeFlowHost {
   public:
    void WantRoom(Room what) override { wanted.push_back(what); }
    std::vector<Room> wanted;
  };

  void SetUp() override { shards = 2; }
  void TearDown() override { other_.reset(); }
  Shard& other() {
    if (other_ == nullptr) {
      shard();
      other_ = std::make_unique<Shard>(&link, 1, &other_host, &counters, shared());
      other_->SetMacs({{2, 0, 0, 0, 0, 1}}, {{2, 0, 0, 0, 0, 2}});
    }
    return *other_;
  }
  // As the device does between two pairs.
  void MoveTo(Shard& from, Shard& to, uint8_t pair) {
    const std::vector<uint32_t> buckets = BucketsOf(&from);
    const SavedFlows taken = TakeOut(&from, buckets);
    for (const uint32_t bucket : buckets) shared()->PassTo(bucket, pair);
    Adopt(&to, taken);
    to.Continue();
  }
  uint32_t Owned(uint8_t pair) {
    uint32_t owned = 0;
    for (uint32_t i = 0; i < SharedFlows::kBuckets; ++i) owned += shared()->OwnerOf(i) == pair;
    return owned;
  }
  // A segment of the guest's on the second pair, if the flow's bucket is that one's.
  bool SayToOther(uint8_t flags, uint32_t sequence, uint32_t ack, std::string_view payload = "") {
    const sdk::TxFrame frame = link.Frame(Segment(flags, sequence, ack, payload));
    const Bytes headers(reinterpret_cast<const uint8_t*>(frame.headers().data()),
                        frame.headers().size());
    const Parsed<Frame> parsed = ParseFrame(headers, frame.size(), false);
    const std::optional<Shard::Place> place = other().PlaceOf(*parsed);
    if (!place.has_value() || !other().core().Claim(place->hash)) return false;
    other().BeginBurst();
    other().OnPacket(frame, *parsed, *place);
    other().EndBurst();
    return true;
  }

  void DropOther() { other_.reset(); }

  OtherHost other_host;

 private:
  std::unique_ptr<Shard> other_;
};

TEST_F(ShardsTest, AConnectionGoesToTheOtherShardWithWhatItHolds) {
  Listen();
  Connect(Full());
  EXPECT_EQ(Owned(0), 1u);
  link.send_limit = 0;
  Say(kAck, ours, theirs, "held");
  Heard();
  link.send_limit = INT64_MAX;
  // Not before it has been given.
  EXPECT_FALSE(SayToOther(kAck, ours + 4, theirs, "more"));
  const int descriptors = host.descriptors + other_host.descriptors;
  const uint64_t opened = Count(Event::kTcpOpened);
  MoveTo(shard(), other(), 1);
  EXPECT_EQ(shard().totals().tcp, 0u);
  EXPECT_EQ(shard().totals().reserved_chunks, 0u);
  EXPECT_EQ(other().totals().tcp, 1u);
  EXPECT_EQ(Owned(0), 0u);
  EXPECT_EQ(Owned(1), 1u);
  EXPECT_EQ(host.descriptors + other_host.descriptors, descriptors);
  EXPECT_EQ(Count(Event::kTcpOpened), opened);
  EXPECT_EQ(Count(Event::kFlowsClosed), 0u);
  EXPECT_EQ(Read(peer.get(), 4), "held");
  ASSERT_TRUE(SayToOther(kAck, ours + 4, theirs, "more"));
  EXPECT_EQ(Read(peer.get(), 4), "more");
  Write(peer.get(), "down");
  ASSERT_TRUE(WaitFor(other().epoll_fd(), POLLIN));
  other().OnReady();
  EXPECT_EQ(HeardBytes(theirs), "down");
  // Its end leaves no bucket behind.
  ASSERT_TRUE(SayToOther(kRst, ours + 8, theirs));
  EXPECT_EQ(other().totals().tcp, 0u);
  EXPECT_EQ(Owned(1), 0u);
  EXPECT_EQ(Ending(peer.get()), "RESET");
  EXPECT_EQ(Count(Event::kFlowsClosed), 1u);
}

TEST_F(ShardsTest, BudgetsHoldForAllShards) {
  limits.tcp_flows = 2;
  Listen();
  Connect(Full());
  guest_port = 40002;
  Connect(Full());
  guest_port = 40004;
  ASSERT_TRUE(SayToOther(kSyn, kIsn, 0));
  EXPECT_EQ(other().totals().tcp, 0u);
  EXPECT_EQ(Count(Event::kTooManyFlows), 1u);
  // The others are asked for room, not with every segment of a flood.
  EXPECT_THAT(other_host.wanted, testing::ElementsAre(Room::kTcpFlow));
  ASSERT_TRUE(SayToOther(kSyn, kIsn, 0));
  EXPECT_EQ(other_host.wanted.size(), 1u);
  EXPECT_FALSE(shard().MakeRoom(Room::kTcpFlow));  // both stand
  host.now += (limits.evict_idle_s + 1) * kSec;
  other_host.now = host.now;
  shard().core().Refresh();
  EXPECT_TRUE(shard().MakeRoom(Room::kTcpFlow));
  ASSERT_TRUE(SayToOther(kSyn, kIsn, 0));
  EXPECT_EQ(other().totals().tcp, 1u);
}

// A tuple that begins anew is still in a bucket of the shard that has its flow.
TEST_F(ShardsTest, ANewTryKeepsItsBucket) {
  ListenInVain();
  Say(kSyn, kIsn, 0);
  Say(kSyn, kIsn + 9, 0);
  EXPECT_EQ(Count(Event::kTcpOpened), 2u);
  EXPECT_EQ(shard().totals().tcp, 1u);
  EXPECT_EQ(Owned(0), 1u);
  EXPECT_FALSE(SayToOther(kSyn, kIsn, 0));
}

// The flows of all shards, as one state: they go on in the first one of the next device, from which
// they go where the guest sends them, and all that they took of the budgets is counted once.
TEST_F(ShardsTest, TheStateOfAllShardsGoesOnInTheFirst) {
  Listen();
  Connect(Full());
  UniqueFd first_peer = std::move(peer);
  const uint32_t first_theirs = theirs;
  MoveTo(shard(), other(), 1);
  guest_port = 40002;
  Connect(Full());
  UniqueFd second_peer = std::move(peer);
  const Endpoint forward = AddForward(kProtocolUdp, 53, 7).host;
  const UniqueFd client = ConnectTo(forward, SOCK_DGRAM);
  ASSERT_EQ(send(client.get(), "x", 1, 0), 1);
  PollUntil([&] { return shard().totals().datagram == 1; });
  ASSERT_EQ(Owned(0), 2u);
  ASSERT_EQ(Owned(1), 1u);
  const int descriptors = host.descriptors + other_host.descriptors;

  Shard* const all[] = {&shard(), &other()};
  const SavedFlows saved = SaveFlows(all);
  std::vector<int> fds;
  for (const int each : saved.fds) fds.push_back(fcntl(each, F_DUPFD_CLOEXEC, 0));
  for (Shard* each : all) each->Forget();
  EXPECT_EQ(Owned(0) + Owned(1), 0u);
  DropOther();
  DropShard();
  auto restored = RestoreFlows(&shard(), saved.bytes, fds);
  ASSERT_TRUE(restored.ok());
  EXPECT_EQ(restored->flows, 4u);
  EXPECT_EQ(restored->dropped, 0u);
  shard().Continue();
  EXPECT_EQ(shard().totals().tcp, 2u);
  EXPECT_EQ(shared()->tcp.used(), 2u);
  EXPECT_EQ(shared()->datagram.used(), 1u);
  EXPECT_EQ(shared()->chunks.used(), shard().totals().reserved_chunks);
  EXPECT_EQ(Owned(0), 3u);
  EXPECT_EQ(Owned(1), 0u);
  EXPECT_EQ(host.descriptors + other_host.descriptors, descriptors);
  uint32_t pinned = 0;
  for (uint32_t i = 0; i < SharedFlows::kBuckets; ++i) pinned += shared()->IsPinned(i);
  EXPECT_EQ(pinned, 1u) << "the datagrams' flow stays with its listener";

  // Back to where the guest sends them; what has to stay stays.
  MoveTo(shard(), other(), 1);
  EXPECT_EQ(Owned(1), 2u);
  EXPECT_EQ(other().totals().tcp, 2u);
  EXPECT_EQ(shard().totals().datagram, 1u);
  guest_port = 40000;
  ASSERT_TRUE(SayToOther(kAck, kIsn + 1, first_theirs, "first"));
  EXPECT_EQ(Read(first_peer.get(), 5), "first");
  guest_port = 40002;
  ASSERT_TRUE(SayToOther(kAck, ours, theirs, "second"));
  EXPECT_EQ(Read(second_peer.get(), 6), "second");
}

TEST_F(ShardsTest, AForwardFindsAPortThatNoOtherShardHas) {
  Tuple tuple;
  uint32_t existing = 0;
  const Endpoint guest{GuestAddress(), 80};
  const Endpoint from{*IpAddress::Parse("192.0.2.1"), 1000};
  ASSERT_TRUE(shard().core().InboundTuple(kProtocolTcp, guest, from, &tuple, &existing));
  EXPECT_EQ(tuple.remote, from);
  const uint32_t hash = shard().core().index.HashOf(tuple);
  shard().core().Unclaim(hash);
  ASSERT_TRUE(other().core().Claim(hash));
  ASSERT_TRUE(shard().core().InboundTuple(kProtocolTcp, guest, from, &tuple, &existing));
  EXPECT_EQ(tuple.remote.port, 1001);
}

}  // namespace
}  // namespace virtbay::proxy_net
