// The last words of a device's plugin: when it is told that its device ends for good, and when not.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::ElementsAre;

class FarewellTest : public DeviceTest {
 protected:
  DeviceHandle Serve(const std::string& name, std::map<std::string, std::string> options = {}) {
    DeviceSpec spec = Spec(name);
    options.emplace("queues", "2");
    spec.options = std::move(options);
    spec.stop_deadline = absl::Milliseconds(300);
    auto device = host_->Add(spec);
    EXPECT_OK(device.status());
    auto client = Client::Create(*device);
    EXPECT_OK(client.status());
    client_ = *std::move(client);
    EXPECT_OK(client_->Check(0));
    EXPECT_OK(client_->Check(1));
    return *device;
  }
  // What was said, without whose it is.
  std::vector<std::string> Said() {
    std::vector<std::string> said;
    for (const std::string& line : log_.lines()) {
      if (const size_t at = line.find("farewell "); at != line.npos)
        said.push_back(line.substr(at));
    }
    return said;
  }
  std::unique_ptr<Client> client_;
};

TEST_F(FarewellTest, IsSaidOnEachQueueThatRunsBeforeItIsQuiesced) {
  Serve("a");
  client_->Send({.op = Op::kHold}, "", 64, 1);
  ASSERT_OK(client_->Check(1));
  ASSERT_OK(host_->Remove("a"));
  EXPECT_THAT(Said(), ElementsAre("farewell 1 on 0 with 0 held", "farewell 1 on 1 with 1 held"));
}

TEST_F(FarewellTest, TellsThatTheHostEnds) {
  Serve("a");
  ASSERT_OK(client_->port().StopQueue(1).status());
  host_.reset();
  EXPECT_THAT(Said(), ElementsAre("farewell 2 on 0 with 0 held"));
}

TEST_F(FarewellTest, IsForNoEndButTheLast) {
  const DeviceHandle device = Serve("a");
  ASSERT_OK(client_->port().StopQueue(0).status());
  ASSERT_OK(client_->driver().Restart());
  ASSERT_OK(device.Stop());
  ASSERT_OK(device.Start());
  ASSERT_OK(client_->driver().Restart());
  ASSERT_OK(client_->Check());
  client_.reset();
  ASSERT_OK(host_->Remove("a"));
  EXPECT_THAT(Said(), ElementsAre());
}

TEST_F(FarewellTest, MayBeAskedForBeforeTheFrontEndIsSentAway) {
  const DeviceHandle device = Serve("a");
  ASSERT_OK(device.Farewell(FarewellReason::kHostEnds));
  ASSERT_OK(device.Farewell(FarewellReason::kRemoved));
  ASSERT_OK(client_->Check(1)) << "it serves until it is stopped";
  client_.reset();
  ASSERT_OK(host_->Remove("a"));
  EXPECT_THAT(Said(), ElementsAre("farewell 2 on 0 with 0 held", "farewell 2 on 1 with 0 held"));
  EXPECT_THAT(device.Farewell(FarewellReason::kRemoved), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(FarewellTest, OneWithoutAnEndCostsTheDeadline) {
  // For good: the thread that is left behind in it is not waited for.
  static const Pipe* const gate = new Pipe;
  const DeviceHandle device = Serve("a", {{"farewell_waits", std::to_string(gate->reader.get())}});
  const DeviceHandle other = [&] {
    auto added = host_->Add(Spec("b"));
    EXPECT_OK(added.status());
    return *added;
  }();
  ASSERT_OK(device.Farewell(FarewellReason::kRemoved));
  EXPECT_THAT(host_->Remove("a"), StatusIs(absl::StatusCode::kDeadlineExceeded, "callback"));
  EXPECT_TRUE(client_->NeedsReset());
  EXPECT_TRUE(log_.Contains("the plugin's farewell does not return"));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(other));
  EXPECT_OK(client->Check()) << "nobody else pays";
  ASSERT_EQ(write(gate->writer.get(), "x", 1), 1);
}

}  // namespace
}  // namespace virtbay::testing
