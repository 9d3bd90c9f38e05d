#include "plugins/proxy-net/dns/resolver.h"

#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "plugins/proxy-net/packet/socket_address.h"

namespace virtbay::proxy_net {
namespace {

constexpr int kEventsPerCall = 64;
constexpr int kDatagramsPerEvent = 16;
constexpr size_t kMaxQueryDatagram = 4096;
// The EDNS size of queries that are made here.
constexpr uint16_t kOwnEdnsSize = 1232;

}  // namespace

Resolver::Resolver(ResolverConfig config, Answer answer)
    : config_(std::move(config)),
      answer_(std::move(answer)),
      slots_(config_.max_in_flight),
      scratch_(kDnsMaxMessage + 1),
      composed_(kDnsMaxMessage) {
  for (uint32_t i = config_.max_in_flight; i > 0; --i) free_.push_back(i - 1);
}

sdk::Result<std::unique_ptr<Resolver>> Resolver::Create(ResolverConfig config, Answer answer) {
  std::unique_ptr<Resolver> out(new Resolver(std::move(config), std::move(answer)));
  out->epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!out->epoll_.valid()) return sdk::Errno(errno, "resolver: epoll_create1");
  return out;
}

Resolver::~Resolver() {
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].busy) Free(i);
  }
}

// From the kernel: an id that can be guessed is as good as none (RFC 5452 4.3).
uint16_t Resolver::RandomId() {
  if (random_left_ == 0) {
    const ssize_t n = getrandom(random_.data(), sizeof random_, 0);
    random_left_ = n > 0 ? static_cast<size_t>(n) / sizeof random_[0] : 0;
    if (random_left_ == 0) return 0;
  }
  return random_[--random_left_];
}

bool Resolver::Arm(uint32_t index, uint32_t events, bool add) {
  Slot& slot = slots_[index];
  epoll_event event{};
  event.events = events;
  event.data.u64 = uint64_t{slot.generation} << 32 | index;
  return epoll_ctl(epoll_.get(), add ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, slot.socket.get(), &event) ==
         0;
}

void Resolver::SetDeadline(uint32_t index, uint64_t deadline_ns) {
  Slot& slot = slots_[index];
  if (slot.deadline_ns != UINT64_MAX) deadlines_.erase({slot.deadline_ns, index});
  slot.deadline_ns = deadline_ns;
  if (deadline_ns != UINT64_MAX) deadlines_.insert({deadline_ns, index});
}

void Resolver::Free(uint32_t index) {
  Slot& slot = slots_[index];
  SetDeadline(index, UINT64_MAX);
  slot.socket.Close();
  slot.busy = false;
  slot.phase = Phase::kIdle;
  ++slot.generation;
  // What one large answer took is not kept for the small ones that follow.
  slot.stream = {};
  slot.fallback = {};
  slot.chain.clear();
  free_.push_back(index);
  --in_flight_;
  if (config_.descriptors.give) config_.descriptors.give();
}

void Resolver::Forget(uint64_t stream) {
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.busy && slot.transport == DnsTransport::kStream && slot.client.stream == stream) {
      Free(i);
    }
  }
}

void Resolver::EachDatagram(
    const std::function<void(const DnsClient& from, Bytes query)>& visit) const {
  for (const Slot& slot : slots_) {
    if (slot.busy && slot.transport == DnsTransport::kDatagram) visit(slot.client, slot.original);
  }
}

void Resolver::EachOfStream(uint64_t stream, const std::function<void(Bytes query)>& visit) const {
  for (const Slot& slot : slots_) {
    if (slot.busy && slot.transport == DnsTransport::kStream && slot.client.stream == stream) {
      visit(slot.original);
    }
  }
}

void Resolver::Send(const DnsClient& to, const DnsQuery& query, Bytes original, Bytes response,
                    DnsTransport transport) {
  const size_t most = transport == DnsTransport::kStream
                          ? kDnsMaxMessage
                          : std::min<size_t>(query.datagram_size(), config_.max_datagram);
  if (response.size() <= most) return answer_(to, response, transport);
  uint8_t truncated[kDnsMinDatagram];
  const size_t size =
      WriteEmptyResponse(original, query.question_end, kRcodeNoError, true, truncated);
  if (size != 0) answer_(to, Bytes(truncated, size), transport);
}

void Resolver::Query(const DnsClient& from, Bytes query, DnsTransport transport, uint64_t now_ns) {
  ++counters_.queries;
  const size_t most = transport == DnsTransport::kDatagram ? kMaxQueryDatagram : kDnsMaxMessage;
  DnsQuery parsed;
  const QueryFault fault = query.size() > most ? QueryFault::kIgnore : ParseQuery(query, &parsed);
  const auto refuse = [&](uint8_t rcode) {
    uint8_t response[kDnsMinDatagram];
    const size_t size = WriteEmptyResponse(query, parsed.question_end, rcode, false, response);
    if (size != 0) answer_(from, Bytes(response, size), transport);
  };
  if (fault != QueryFault::kNone) {
    ++counters_.refused_malformed;
    if (fault == QueryFault::kFormErr) refuse(kRcodeFormErr);
    if (fault == QueryFault::kNotImp) refuse(kRcodeNotImp);
    return;
  }
  std::vector<DomainName> chain;
  if (AnswerFromRecords(from, parsed, query, transport, &chain)) return;
  // A client that did not wait is answered once all the same.
  for (const Slot& slot : slots_) {
    if (slot.busy && slot.client == from && slot.transport == transport &&
        slot.asked.id == parsed.id && slot.asked.question == parsed.question) {
      ++counters_.duplicates;
      return;
    }
  }
  if (free_.empty() || config_.servers.empty() ||
      (config_.descriptors.take && !config_.descriptors.take())) {
    ++counters_.refused_full;
    return refuse(kRcodeServFail);
  }
  const uint32_t index = free_.back();
  free_.pop_back();
  ++in_flight_;
  Slot& slot = slots_[index];
  slot.busy = true;
  slot.client = from;
  slot.transport = transport;
  slot.asked = parsed;
  slot.original.assign(query.begin(), query.end());
  slot.question = parsed.question;
  slot.chain = std::move(chain);
  slot.servers = config_.servers;
  slot.attempt = 0;
  slot.sent = 0;
  slot.query.assign(2, 0);
  if (slot.chain.empty()) {
    // As it came, EDNS and all that is in it.
    slot.query.insert(slot.query.end(), query.begin(), query.end());
  } else {
    slot.question.name = slot.chain.back();
    uint8_t own[kDnsMinDatagram];
    const size_t size =
        WriteQuery(0, static_cast<uint16_t>(parsed.flags & ~kOpcodeMask), slot.question,
                   parsed.edns_size.has_value() ? std::optional(kOwnEdnsSize) : std::nullopt, own);
    slot.query.insert(slot.query.end(), own, own + size);
  }
  const size_t size = slot.query.size() - 2;
  slot.query[0] = static_cast<uint8_t>(size >> 8);
  slot.query[1] = static_cast<uint8_t>(size);
  Begin(index, now_ns);
}

// The answer to what is known here, as a whole; or the aliases that lead to a name of somebody
// else.
bool Resolver::AnswerFromRecords(const DnsClient& from, const DnsQuery& query, Bytes bytes,
                                 DnsTransport transport, std::vector<DomainName>* chain) {
  if (query.question.klass != kClassIn || config_.records.empty()) return false;
  const StaticRecords::Entry* entry = config_.records.Find(query.question.name);
  if (entry == nullptr) return false;
  Writer w(composed_);
  w.Put(bytes.first(kDnsHeaderSize));
  w.Put(bytes.subspan(kDnsHeaderSize, query.question_end - kDnsHeaderSize));
  w.PatchU16(
      2, static_cast<uint16_t>(kFlagResponse | kFlagAuthoritative |
                               (query.flags & kFlagRecursionDesired) | kFlagRecursionAvailable));
  uint16_t answers = 0;
  const auto record = [&](const DomainName& name, uint16_t type, Bytes data) {
    w.Put(name.wire());
    w.U16(type);
    w.U16(kClassIn);
    w.U32(StaticRecords::kTtlS);
    w.U16(static_cast<uint16_t>(data.size()));
    w.Put(data);
    ++answers;
  };
  const uint16_t type = query.question.type;
  DomainName name = query.question.name;
  uint8_t rcode = kRcodeNoError;
  for (size_t hops = 0; entry->cname.has_value(); ++hops) {
    if (hops == StaticRecords::kMaxChain) {
      rcode = kRcodeServFail;
      answers = 0;
      break;
    }
    record(name, kTypeCname, entry->cname->wire());
    chain->push_back(*entry->cname);
    if (type == kTypeCname || type == kTypeAny) break;
    name = *entry->cname;
    entry = config_.records.Find(name);
    if (entry == nullptr) return false;
  }
  chain->clear();
  if (rcode != kRcodeNoError) {
    const size_t size = WriteEmptyResponse(bytes, query.question_end, rcode, false, composed_);
    ++counters_.static_answers;
    return Send(from, query, bytes, Bytes(composed_).first(size), transport), true;
  }
  if (!entry->cname.has_value() && (type == kTypeA || type == kTypeAny)) {
    for (const Ipv4Address& a : entry->a) record(name, kTypeA, IpAddress(a).bytes());
  }
  if (!entry->cname.has_value() && (type == kTypeAaaa || type == kTypeAny)) {
    for (const Ipv6Address& a : entry->aaaa) record(name, kTypeAaaa, a.bytes);
  }
  w.PatchU16(6, answers);
  w.PatchU16(8, 0);
  w.PatchU16(10, query.edns_size.has_value() ? 1 : 0);
  if (query.edns_size.has_value()) {
    w.U8(0);
    w.U16(kTypeOpt);
    w.U16(kOwnEdnsSize);
    w.U32(0);
    w.U16(0);
  }
  ++counters_.static_answers;
  Send(from, query, bytes, w.written(), transport);
  return true;
}

// Over a stream a client wants all of an answer, which only a stream is sure to carry.
void Resolver::Begin(uint32_t index, uint64_t now_ns) {
  Slot& slot = slots_[index];
  ++counters_.attempts;
  const bool again = slot.phase == Phase::kUdp && slot.servers.size() == 1 && slot.socket.valid();
  bool started = false;
  if (slot.transport == DnsTransport::kStream && slot.attempt < slot.servers.size()) {
    started = StartTcp(index);
  } else if (again) {
    // The same datagram from the same port: the answer to either is one.
    started =
        send(slot.socket.get(), slot.query.data() + 2, slot.query.size() - 2, MSG_NOSIGNAL) >= 0;
  } else {
    started = StartUdp(index);
  }
  if (!started) return TryNext(index, now_ns);
  const auto round = static_cast<uint32_t>(slot.attempt / slot.servers.size());
  SetDeadline(index, now_ns + (config_.timeout_ns << std::min(round, 4u)));
}

void Resolver::TryNext(uint32_t index, uint64_t now_ns) {
  Slot& slot = slots_[index];
  // Over TCP each server is asked once, and then again with datagrams.
  const size_t most = slot.servers.size() * std::max(config_.rounds, 1u);
  ++slot.attempt;
  if (slot.attempt < most) return Begin(index, now_ns);
  if (!slot.fallback.empty()) {
    const std::vector<uint8_t> response = std::move(slot.fallback);
    return Finish(index, response);
  }
  Fail(index);
}

bool Resolver::StartUdp(uint32_t index) {
  Slot& slot = slots_[index];
  const DnsServer& server = ServerOf(slot);
  const SocketAddress to = SocketAddress::Of(server.endpoint, server.scope);
  slot.socket = Fd(socket(to.get()->sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // Connected: the kernel chooses a random port, and lets in that server alone.
  if (!slot.socket.valid() || connect(slot.socket.get(), to.get(), to.size) != 0) return false;
  slot.id = RandomId();
  slot.query[2] = static_cast<uint8_t>(slot.id >> 8);
  slot.query[3] = static_cast<uint8_t>(slot.id);
  ++slot.generation;
  slot.phase = Phase::kUdp;
  return Arm(index, EPOLLIN, true) &&
         send(slot.socket.get(), slot.query.data() + 2, slot.query.size() - 2, MSG_NOSIGNAL) >= 0;
}

bool Resolver::StartTcp(uint32_t index) {
  Slot& slot = slots_[index];
  const DnsServer& server = ServerOf(slot);
  const SocketAddress to = SocketAddress::Of(server.endpoint, server.scope);
  slot.socket = Fd(socket(to.get()->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!slot.socket.valid()) return false;
  if (connect(slot.socket.get(), to.get(), to.size) != 0 && errno != EINPROGRESS) return false;
  ++counters_.over_tcp;
  slot.id = RandomId();
  slot.query[2] = static_cast<uint8_t>(slot.id >> 8);
  slot.query[3] = static_cast<uint8_t>(slot.id);
  ++slot.generation;
  slot.phase = Phase::kTcpConnect;
  slot.sent = 0;
  slot.stream.clear();
  return Arm(index, EPOLLOUT, true);
}

void Resolver::OnReady(uint64_t now_ns) {
  epoll_event events[kEventsPerCall];
  const int n = epoll_wait(epoll_.get(), events, kEventsPerCall, 0);
  for (int i = 0; i < n; ++i) {
    const auto index = static_cast<uint32_t>(events[i].data.u64);
    const auto generation = static_cast<uint32_t>(events[i].data.u64 >> 32);
    // An event of a socket that was closed since, in this very loop perhaps.
    if (index >= slots_.size() || !slots_[index].busy || slots_[index].generation != generation) {
      continue;
    }
    if (slots_[index].phase == Phase::kUdp) {
      OnUdp(index, now_ns);
    } else {
      OnTcp(index, events[i].events, now_ns);
    }
  }
}

void Resolver::OnUdp(uint32_t index, uint64_t now_ns) {
  for (int i = 0; i < kDatagramsPerEvent; ++i) {
    const ssize_t n = recv(slots_[index].socket.get(), scratch_.data(), scratch_.size(), 0);
    if (n < 0) {
      // Nobody is there: the next one, without waiting.
      if (errno != EAGAIN && errno != EINTR) TryNext(index, now_ns);
      return;
    }
    if (OnResponse(index, Bytes(scratch_).first(static_cast<size_t>(n)), now_ns)) return;
  }
}

void Resolver::OnTcp(uint32_t index, uint32_t events, uint64_t now_ns) {
  Slot& slot = slots_[index];
  if (slot.phase == Phase::kTcpConnect) {
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(slot.socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) {
      return TryNext(index, now_ns);
    }
    slot.phase = Phase::kTcpWrite;
  }
  if (slot.phase == Phase::kTcpWrite) {
    while (slot.sent < slot.query.size()) {
      const ssize_t n = send(slot.socket.get(), slot.query.data() + slot.sent,
                             slot.query.size() - slot.sent, MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return;
      if (n < 0) return TryNext(index, now_ns);
      slot.sent += static_cast<size_t>(n);
    }
    slot.phase = Phase::kTcpRead;
    if (!Arm(index, EPOLLIN, false)) return TryNext(index, now_ns);
    return;
  }
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) == 0) return;
  while (true) {
    const size_t had = slot.stream.size();
    const size_t wanted = had < 2 ? 2 : 2 + (size_t{slot.stream[0]} << 8 | slot.stream[1]);
    if (had >= 2 && had == wanted) break;
    const ssize_t n = recv(slot.socket.get(), scratch_.data(), wanted - had, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return TryNext(index, now_ns);
    slot.stream.insert(slot.stream.end(), scratch_.begin(), scratch_.begin() + n);
  }
  const std::vector<uint8_t> message = std::move(slot.stream);
  slot.stream.clear();
  // One that is none to the query ends the connection: nothing else was asked there.
  if (!OnResponse(index, Bytes(message).subspan(2), now_ns)) TryNext(index, now_ns);
}

bool Resolver::OnResponse(uint32_t index, Bytes response, uint64_t now_ns) {
  Slot& slot = slots_[index];
  DnsResponse said;
  if (CheckResponse(response, slot.id, slot.question, &said) != ResponseFault::kNone) {
    ++counters_.mismatched;
    return false;
  }
  const bool failed = said.rcode == kRcodeServFail || said.rcode == kRcodeRefused ||
                      said.rcode == kRcodeNotImp || said.rcode == kRcodeFormErr;
  if (failed && slot.attempt + 1 < slot.servers.size()) {
    slot.fallback.assign(response.begin(), response.end());
    TryNext(index, now_ns);
    return true;
  }
  if (said.truncated && slot.phase == Phase::kUdp &&
      (slot.transport == DnsTransport::kStream || slot.asked.edns_size.has_value())) {
    // The server may have a smaller idea of a datagram than the client.
    slot.fallback.assign(response.begin(), response.end());
    ++counters_.attempts;
    if (StartTcp(index)) {
      SetDeadline(index, now_ns + config_.timeout_ns);
      return true;
    }
  }
  Finish(index, response);
  return true;
}

void Resolver::Finish(uint32_t index, Bytes response) {
  Slot& slot = slots_[index];
  ++counters_.answers;
  if (slot.chain.empty()) {
    Writer w(composed_);
    w.Put(response);
    w.PatchU16(0, slot.asked.id);
    if (w.ok()) Send(slot.client, slot.asked, slot.original, w.written(), slot.transport);
    return Free(index);
  }
  // The aliases, then what the last of them stands for. The response may be one of an earlier
  // attempt, which had another id.
  DnsResponse said;
  const uint16_t id = Reader(response).U16();
  if (CheckResponse(response, id, slot.question, &said) != ResponseFault::kNone) {
    return Fail(index);
  }
  Writer w(composed_);
  Reader in(response);
  in.Skip(2);
  w.U16(slot.asked.id);
  w.U16(static_cast<uint16_t>(in.U16() & ~kFlagAuthoritative));
  w.U16(1);
  w.U16(0);
  w.U32(0);
  w.Put(Bytes(slot.original).subspan(kDnsHeaderSize, slot.asked.question_end - kDnsHeaderSize));
  uint16_t answers = 0;
  DomainName name = slot.asked.question.name;
  for (const DomainName& target : slot.chain) {
    w.Put(name.wire());
    w.U16(kTypeCname);
    w.U16(kClassIn);
    w.U32(StaticRecords::kTtlS);
    w.U16(static_cast<uint16_t>(target.wire().size()));
    w.Put(target.wire());
    name = target;
    ++answers;
  }
  size_t at = said.answers_at;
  for (uint16_t i = 0; i < said.answers && w.ok(); ++i) {
    DnsRecord record;
    if (!ReadRecord(response, &at, &record) || !CopyRecord(response, record, &w)) break;
    ++answers;
  }
  if (!w.ok()) return Fail(index);
  w.PatchU16(6, answers);
  Send(slot.client, slot.asked, slot.original, w.written(), slot.transport);
  Free(index);
}

void Resolver::Fail(uint32_t index) {
  const Slot& slot = slots_[index];
  ++counters_.failed;
  uint8_t response[kDnsMinDatagram];
  const size_t size =
      WriteEmptyResponse(slot.original, slot.asked.question_end, kRcodeServFail, false, response);
  if (size != 0) answer_(slot.client, Bytes(response, size), slot.transport);
  Free(index);
}

void Resolver::OnTime(uint64_t now_ns) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now_ns) {
    TryNext(deadlines_.begin()->second, now_ns);
  }
}

}  // namespace virtbay::proxy_net
