// DnsStreams: queries that come over streams, each with its length in front (RFC 1035 4.2.2), from
// any connected stream socket: the gateway's end of a guest's TCP connection. Several queries may
// be under way on one stream; answers go out as they come (RFC 7766 6.2.1.1). A stream from which
// nobody takes answers is not read any further, and one that is silent is closed. Owned by the
// DnsService; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_DNS_STREAMS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_DNS_STREAMS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "plugins/proxy-net/dns/fd.h"
#include "plugins/proxy-net/packet/cursor.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

class DnsStreams {
 public:
  static constexpr uint32_t kMaxStreams = 64;
  static constexpr uint32_t kMaxPending = 16;  // queries under way on one stream
  static constexpr uint64_t kIdleNs = 30'000'000'000;

  // Called with a query of a stream; it is answered with Answer(), or never.
  using OnQuery = std::function<void(uint64_t stream, Bytes query)>;
  // Called when a stream has ended.
  using OnEnd = std::function<void(uint64_t stream)>;

  // [control] An Error names the system call that failed.
  sdk::Status Open(OnQuery on_query, OnEnd on_end);
  // Takes over a connected stream socket. False, and it is closed, when there are too many.
  bool Add(int fd, uint64_t now_ns);
  // What a stream is made of, for another resolver to go on with it.
  struct Saved {
    int fd = -1;               // still the stream's own
    bool ended = false;        // the client sends no more
    std::vector<uint8_t> in;   // queries that are not answered yet, and what has come of the next
    std::vector<uint8_t> out;  // answers that have not been sent yet
  };
  // Takes over a stream that Save told of, with a descriptor of its own. False, and it is closed,
  // when there are too many. Its queries are taken when Resume is called.
  bool Restore(Saved saved, uint64_t now_ns);
  // Once all are there, on the thread that serves them.
  void Resume();
  // `waiting` calls back with each query of that stream that is under way.
  using Waiting =
      std::function<void(uint64_t stream, const std::function<void(Bytes query)>& visit)>;
  std::vector<Saved> Save(const Waiting& waiting) const;
  // Sends an answer, which is dropped when the stream has ended.
  void Answer(uint64_t stream, Bytes answer);

  // [any] For an epoll, for reading; then OnReady().
  int fd() const { return epoll_.get(); }
  void OnReady(uint64_t now_ns);
  // When OnTime has something to do, or UINT64_MAX.
  uint64_t NextDeadline() const { return next_ns_; }
  void OnTime(uint64_t now_ns);

  size_t count() const { return count_; }

 private:
  struct Stream {
    uint32_t generation = 0;
    Fd socket;
    std::vector<uint8_t> in;   // of a query, with its length
    std::vector<uint8_t> out;  // of answers, with theirs
    size_t sent = 0;
    uint32_t pending = 0;
    bool ended = false;  // the client sends no more
    uint32_t armed = 0;
    uint64_t heard_ns = 0;
  };

  uint64_t IdOf(uint32_t index) const { return uint64_t{streams_[index].generation} << 32 | index; }
  Stream* Find(uint64_t id);
  // Where it is now; nothing, and the descriptor is closed, when there are too many.
  std::optional<uint32_t> Insert(int fd, uint64_t now_ns);
  void Read(uint32_t index, uint64_t now_ns);
  void Take(uint32_t index);
  void Write(uint32_t index);
  void Rearm(uint32_t index);
  void Close(uint32_t index);

  OnQuery on_query_;
  OnEnd on_end_;
  Fd epoll_;
  std::vector<Stream> streams_{kMaxStreams};
  size_t count_ = 0;
  uint64_t next_ns_ = UINT64_MAX;
  std::vector<uint8_t> chunk_ = std::vector<uint8_t>(16384);
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_DNS_STREAMS_H_
