// DnsService: the resolver on the gateway's address, whole: datagrams and streams in, the host's
// resolvers behind it, as resolv.conf names them now or as configured. One descriptor and one
// deadline for all of it. Owned by the device, used on the thread of one queue; [queue] unless
// tagged otherwise.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_DNS_DNS_SERVICE_H_
#define VIRTBAY_PLUGINS_PROXY_NET_DNS_DNS_SERVICE_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "plugins/proxy-net/dns/resolver.h"
#include "plugins/proxy-net/dns/streams.h"

namespace virtbay::proxy_net {

struct DnsConfig {
  ResolverConfig resolver;  // its servers, when given, instead of resolv.conf's
  std::string resolv_conf = "/etc/resolv.conf";
  bool follow = true;  // resolv.conf
};

class DnsService {
 public:
  struct Callbacks {
    // A datagram for a client, or the answer to a query with a stream of the caller's own. Called
    // from within the functions below; it must not call them.
    Resolver::Answer answer;
    // The search list of resolv.conf, at first and when it changes; may be empty.
    std::function<void(const std::vector<DomainName>&)> search;
  };

  // [control] Begins to watch resolv.conf unless servers are configured; an Error says what failed.
  static sdk::Result<std::unique_ptr<DnsService>> Create(DnsConfig config, Callbacks callbacks);
  DnsService(const DnsService&) = delete;
  DnsService& operator=(const DnsService&) = delete;

  // Takes the payload of a datagram to the gateway's port 53, or one query of a stream that the
  // caller keeps, whose number is below 2^63. The answer comes through the callback.
  void Query(const DnsClient& from, Bytes query, DnsTransport transport, uint64_t now_ns) {
    resolver_->Query(from, query, transport, now_ns);
  }
  // The caller's stream has ended.
  void Forget(uint64_t stream) { resolver_->Forget(stream); }
  // Takes over a connected stream socket whose other end is a guest's connection to port 53:
  // queries with lengths come in, answers with lengths go out, and it is closed when the client has
  // closed. False, and it is closed, when there are too many.
  bool AddStream(int fd, uint64_t now_ns) { return streams_.Add(fd, now_ns); }
  // The records that are known without asking anybody.
  void SetRecords(StaticRecords records) { resolver_->SetRecords(std::move(records)); }

  // ---- state [control], while nobody serves it ------------------------------------------------
  // What is still to be answered, and the streams, whose descriptors are appended to `fds`: they
  // stay the service's own.
  std::vector<uint8_t> Save(std::vector<int>* fds) const;
  // Takes over what Save gave, and the descriptors, whatever becomes of them; an Error when it is
  // not well formed or the descriptors are of another number: nothing is taken over then.
  sdk::Status Restore(Bytes state, std::span<const int> fds, uint64_t now_ns);
  // Asks for all of that anew.
  void Resume(uint64_t now_ns);

  // [any] For the device's epoll, for reading; then OnReady().
  int fd() const { return epoll_.get(); }
  void OnReady(uint64_t now_ns);
  // When OnTime has something to do (CLOCK_MONOTONIC in ns), or UINT64_MAX.
  uint64_t NextDeadline() const {
    return std::min(resolver_->NextDeadline(), streams_.NextDeadline());
  }
  void OnTime(uint64_t now_ns);

  const Resolver& resolver() const { return *resolver_; }
  size_t streams() const { return streams_.count(); }

 private:
  static constexpr uint64_t kOwnStream = uint64_t{1} << 63;
  DnsService() = default;
  void UseResolvConf();

  Callbacks callbacks_;
  bool configured_servers_ = false;
  Fd epoll_;
  std::optional<ResolvConfWatcher> watcher_;
  std::unique_ptr<Resolver> resolver_;
  DnsStreams streams_;
  // Of a state, until Resume.
  std::vector<std::pair<DnsClient, std::vector<uint8_t>>> restored_;
  uint64_t now_ns_ = 0;  // of the call that is under way
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_DNS_DNS_SERVICE_H_
