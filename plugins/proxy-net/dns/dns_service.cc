#include "plugins/proxy-net/dns/dns_service.h"

#include <sys/epoll.h>

#include <cerrno>
#include <utility>

namespace virtbay::proxy_net {
namespace {

enum Source : uint64_t { kResolver, kStreams, kResolvConf };

}  // namespace

sdk::Result<std::unique_ptr<DnsService>> DnsService::Create(DnsConfig config, Callbacks callbacks) {
  std::unique_ptr<DnsService> out(new DnsService);
  DnsService* self = out.get();
  out->callbacks_ = std::move(callbacks);
  out->configured_servers_ = !config.resolver.servers.empty();
  auto resolver =
      Resolver::Create(std::move(config.resolver),
                       [self](const DnsClient& to, Bytes answer, DnsTransport transport) {
                         if (transport == DnsTransport::kStream && (to.stream & kOwnStream) != 0) {
                           self->streams_.Answer(to.stream & ~kOwnStream, answer);
                         } else {
                           self->callbacks_.answer(to, answer, transport);
                         }
                       });
  if (!resolver.ok()) return resolver.error();
  out->resolver_ = std::move(*resolver);
  sdk::Status opened = out->streams_.Open(
      [self](uint64_t stream, Bytes query) {
        self->resolver_->Query({{}, stream | kOwnStream}, query, DnsTransport::kStream,
                               self->now_ns_);
      },
      [self](uint64_t stream) { self->resolver_->Forget(stream | kOwnStream); });
  if (!opened.ok()) return opened.error();
  if (config.follow) {
    auto watcher = ResolvConfWatcher::Open(config.resolv_conf);
    if (!watcher.ok()) return watcher.error();
    out->watcher_ = std::move(*watcher);
  }

  out->epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!out->epoll_.valid()) return sdk::Errno(errno, "resolver: epoll_create1");
  const auto add = [&](int fd, Source source) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = source;
    return epoll_ctl(out->epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  };
  if (!add(out->resolver_->fd(), kResolver) || !add(out->streams_.fd(), kStreams) ||
      (out->watcher_.has_value() && !add(out->watcher_->fd(), kResolvConf))) {
    return sdk::Errno(errno, "resolver: epoll_ctl");
  }
  if (out->watcher_.has_value()) {
    out->UseResolvConf();
  } else if (!out->configured_servers_) {
    out->resolver_->SetServers(ResolvConf::Load(config.resolv_conf).servers);
  }
  return out;
}

void DnsService::UseResolvConf() {
  const ResolvConf& now = watcher_->current();
  if (!configured_servers_) resolver_->SetServers(now.servers);
  if (callbacks_.search) callbacks_.search(now.search);
}

void DnsService::OnReady(uint64_t now_ns) {
  now_ns_ = now_ns;
  epoll_event events[4];
  const int n = epoll_wait(epoll_.get(), events, 4, 0);
  for (int i = 0; i < n; ++i) {
    switch (events[i].data.u64) {
      case kResolver:
        resolver_->OnReady(now_ns);
        break;
      case kStreams:
        streams_.OnReady(now_ns);
        break;
      default:
        if (watcher_->OnReady()) UseResolvConf();
        break;
    }
  }
}

void DnsService::OnTime(uint64_t now_ns) {
  now_ns_ = now_ns;
  resolver_->OnTime(now_ns);
  streams_.OnTime(now_ns);
}

}  // namespace virtbay::proxy_net
