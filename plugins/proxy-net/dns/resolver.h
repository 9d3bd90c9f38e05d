// Resolver: forwards the guest's queries to the host's resolvers and their answers back. Each query
// has a slot, a socket and a random id of its own; an answer is matched by socket, id and question.
// A slot that is given to another query has another generation, so that nothing that was under way
// for the first can reach the second; with the resolver all of it ends.
// Owned by the DnsService, used on the thread of one queue; [queue] unless tagged otherwise.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_DNS_RESOLVER_H_
#define VIRTBAY_PLUGINS_PROXY_NET_DNS_RESOLVER_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "plugins/proxy-net/dns/fd.h"
#include "plugins/proxy-net/dns/message.h"
#include "plugins/proxy-net/dns/records.h"
#include "plugins/proxy-net/dns/resolv_conf.h"
#include "plugins/proxy-net/packet/address.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

enum class DnsTransport : uint8_t { kDatagram, kStream };

// Who asked, and where the answer goes.
struct DnsClient {
  Endpoint endpoint;
  uint64_t stream = 0;  // which one, of queries that came over a stream
  bool operator==(const DnsClient&) const = default;
};

// Whoever counts the process's open files: `take` before a socket is opened, false when none is
// left; `give` after it is closed. Both or neither.
struct DescriptorBudget {
  std::function<bool()> take;
  std::function<void()> give;
};

struct ResolverConfig {
  std::vector<DnsServer> servers;
  StaticRecords records;
  uint32_t max_in_flight = 256;         // queries; those beyond get SERVFAIL
  uint64_t timeout_ns = 2'000'000'000;  // of the first attempt at each server, doubled for the next
  uint32_t rounds = 2;                  // attempts at each server
  size_t max_datagram = 1452;    // bytes that an answer over UDP may have, whatever was asked for
  DescriptorBudget descriptors;  // of one socket for each query in flight
};

class Resolver {
 public:
  struct Counters {
    uint64_t queries = 0;
    uint64_t answers = 0;
    uint64_t static_answers = 0;
    uint64_t refused_full = 0;  // SERVFAIL since too many were in flight
    uint64_t refused_malformed = 0;
    uint64_t duplicates = 0;  // the same again while it was in flight
    uint64_t attempts = 0;    // queries sent to servers
    uint64_t over_tcp = 0;    // of those
    uint64_t mismatched = 0;  // responses that were none to the query
    uint64_t failed = 0;      // SERVFAIL since no server answered
  };

  // Answers the client; called from within the functions of the resolver, Query() among them, and
  // with bytes that are good during the call. It must not call the resolver.
  using Answer = std::function<void(const DnsClient& to, Bytes answer, DnsTransport transport)>;

  // [control] An Error names the system call that failed.
  static sdk::Result<std::unique_ptr<Resolver>> Create(ResolverConfig config, Answer answer);
  Resolver(const Resolver&) = delete;
  Resolver& operator=(const Resolver&) = delete;
  ~Resolver();

  // Takes a query; it is answered once, at once or later, unless it is no query or Forget() was
  // called.
  void Query(const DnsClient& from, Bytes query, DnsTransport transport, uint64_t now_ns);
  // Drops what is in flight for a stream.
  void Forget(uint64_t stream);
  // For queries from now on.
  void SetServers(std::vector<DnsServer> servers) { config_.servers = std::move(servers); }
  void SetRecords(StaticRecords records) { config_.records = std::move(records); }

  // [any] For an epoll, for reading; then OnReady().
  int fd() const { return epoll_.get(); }
  void OnReady(uint64_t now_ns);
  // When OnTime has something to do, or UINT64_MAX.
  uint64_t NextDeadline() const {
    return deadlines_.empty() ? UINT64_MAX : deadlines_.begin()->first;
  }
  void OnTime(uint64_t now_ns);

  // Queries that came as datagrams and are still to be answered: who asked, and what.
  void EachDatagram(const std::function<void(const DnsClient& from, Bytes query)>& visit) const;
  // The same of one stream.
  void EachOfStream(uint64_t stream, const std::function<void(Bytes query)>& visit) const;

  size_t in_flight() const { return in_flight_; }
  const Counters& counters() const { return counters_; }

 private:
  enum class Phase : uint8_t { kIdle, kUdp, kTcpConnect, kTcpWrite, kTcpRead };

  struct Slot {
    uint32_t generation = 0;
    Phase phase = Phase::kIdle;
    bool busy = false;
    DnsClient client;
    DnsTransport transport = DnsTransport::kDatagram;
    DnsQuery asked;                 // by the client
    std::vector<uint8_t> original;  // its bytes
    DnsQuestion question;           // what the servers are asked
    std::vector<DomainName> chain;  // aliases of our own from one to the other
    std::vector<uint8_t> query;     // two bytes of length, then what the servers get
    uint16_t id = 0;
    Fd socket;
    uint32_t attempt = 0;
    uint64_t deadline_ns = UINT64_MAX;
    std::vector<uint8_t> stream;  // what came over TCP, with its length
    size_t sent = 0;
    std::vector<uint8_t> fallback;  // an answer that is better than none
    std::vector<DnsServer> servers;
  };

  explicit Resolver(ResolverConfig config, Answer answer);
  bool AnswerFromRecords(const DnsClient& from, const DnsQuery& query, Bytes bytes,
                         DnsTransport transport, std::vector<DomainName>* chain);
  void Begin(uint32_t index, uint64_t now_ns);
  void TryNext(uint32_t index, uint64_t now_ns);
  bool StartUdp(uint32_t index);
  bool StartTcp(uint32_t index);
  void OnUdp(uint32_t index, uint64_t now_ns);
  void OnTcp(uint32_t index, uint32_t events, uint64_t now_ns);
  // True when the slot is done with, or has gone on to something else.
  bool OnResponse(uint32_t index, Bytes response, uint64_t now_ns);
  void Finish(uint32_t index, Bytes response);
  void Fail(uint32_t index);
  void Send(const DnsClient& to, const DnsQuery& query, Bytes original, Bytes response,
            DnsTransport transport);
  bool Arm(uint32_t index, uint32_t events, bool add);
  void SetDeadline(uint32_t index, uint64_t deadline_ns);
  void Free(uint32_t index);
  const DnsServer& ServerOf(const Slot& slot) const {
    return slot.servers[slot.attempt % slot.servers.size()];
  }
  uint16_t RandomId();

  ResolverConfig config_;
  Answer answer_;
  Fd epoll_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  std::set<std::pair<uint64_t, uint32_t>> deadlines_;
  size_t in_flight_ = 0;
  Counters counters_;
  std::array<uint16_t, 64> random_{};
  size_t random_left_ = 0;
  std::vector<uint8_t> scratch_;   // what a socket gave
  std::vector<uint8_t> composed_;  // an answer that is put together here
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_DNS_RESOLVER_H_
