// The state of the DnsService as bytes: a version, then records of a type, a length and a value,
// all in network byte order. Records of unknown types are passed over, so that a later version can
// add some. A query that was under way is asked for anew by whoever goes on: that is what its
// client would do, only sooner.
#include <unistd.h>

#include <string>
#include <utility>

#include "plugins/proxy-net/dns/dns_service.h"
#include "plugins/proxy-net/packet/cursor.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint32_t kMagic = 0x7662646e;  // "vbdn"
constexpr uint16_t kVersion = 1;

enum Record : uint16_t {
  kQuery = 1,   // 4 or 6, address, port, the message
  kStream = 2,  // whether it has ended, bytes of answers, the answers, what has come of queries
};

// Of a stream: as many messages as may be under way, and as many answers.
constexpr size_t kMostOfStream = size_t{2 * DnsStreams::kMaxPending} * (kDnsMaxMessage + 2);

void Append(std::vector<uint8_t>* out, Record type, Bytes head, Bytes first, Bytes second = {}) {
  uint8_t header[6];
  Writer w(header);
  w.U16(type);
  w.U32(static_cast<uint32_t>(head.size() + first.size() + second.size()));
  for (const Bytes part : {Bytes(header), head, first, second}) {
    out->insert(out->end(), part.begin(), part.end());
  }
}

bool ReadQuery(Reader in, std::pair<DnsClient, std::vector<uint8_t>>* query) {
  const uint8_t family = in.U8();
  if (family == 4) {
    query->first.endpoint.address = ReadIpv4(&in);
  } else {
    query->first.endpoint.address = ReadIpv6(&in);
  }
  query->first.endpoint.port = in.U16();
  const Bytes message = in.rest();
  query->second.assign(message.begin(), message.end());
  return in.ok() && (family == 4 || family == 6) && message.size() <= kDnsMaxMessage;
}

bool ReadStream(Reader in, DnsStreams::Saved* stream) {
  stream->ended = in.U8() != 0;
  const Bytes answers = in.Take(in.U32());
  const Bytes queries = in.rest();
  stream->out.assign(answers.begin(), answers.end());
  stream->in.assign(queries.begin(), queries.end());
  return in.ok() && answers.size() <= kMostOfStream && queries.size() <= kMostOfStream;
}

}  // namespace

std::vector<uint8_t> DnsService::Save(std::vector<int>* fds) const {
  std::vector<uint8_t> out(6);
  Writer w(out);
  w.U32(kMagic);
  w.U16(kVersion);
  const auto query = [&out](const DnsClient& from, Bytes message) {
    uint8_t head[19];
    Writer h(head);
    h.U8(from.endpoint.address.is_v4() ? 4 : 6);
    h.Put(from.endpoint.address.bytes());
    h.U16(from.endpoint.port);
    Append(&out, kQuery, h.written(), message);
  };
  resolver_->EachDatagram(query);
  for (const auto& [from, message] : restored_) query(from, message);
  const std::vector<DnsStreams::Saved> streams =
      streams_.Save([this](uint64_t stream, const std::function<void(Bytes)>& visit) {
        resolver_->EachOfStream(stream | kOwnStream, visit);
      });
  for (const DnsStreams::Saved& stream : streams) {
    uint8_t head[5];
    Writer h(head);
    h.U8(stream.ended ? 1 : 0);
    h.U32(static_cast<uint32_t>(stream.out.size()));
    Append(&out, kStream, head, stream.out, stream.in);
    fds->push_back(stream.fd);
  }
  return out;
}

sdk::Status DnsService::Restore(Bytes state, std::span<const int> fds, uint64_t now_ns) {
  std::vector<std::pair<DnsClient, std::vector<uint8_t>>> queries;
  std::vector<DnsStreams::Saved> streams;
  const auto read = [&]() -> sdk::Status {
    Reader in(state);
    const uint32_t magic = in.U32();
    const uint16_t version = in.U16();
    if (!in.ok() || magic != kMagic || version == 0 || version > kVersion) {
      return sdk::InvalidArgument("state of the resolver: does not begin as one that is known");
    }
    while (in.left() != 0) {
      const uint16_t type = in.U16();
      const Reader value(in.Take(in.U32()));
      bool good = in.ok();
      if (good && type == kQuery) good = ReadQuery(value, &queries.emplace_back());
      if (good && type == kStream) good = ReadStream(value, &streams.emplace_back());
      if (!good) {
        return sdk::InvalidArgument("state of the resolver: a record of type " +
                                    std::to_string(type) + " is not well formed");
      }
    }
    if (streams.size() == fds.size()) return {};
    return sdk::InvalidArgument("state of the resolver: " + std::to_string(streams.size()) +
                                " streams, and descriptors for " + std::to_string(fds.size()));
  };
  if (sdk::Status status = read(); !status.ok()) {
    for (const int fd : fds) close(fd);
    return status;
  }
  restored_ = std::move(queries);
  for (size_t i = 0; i < streams.size(); ++i) {
    streams[i].fd = fds[i];
    static_cast<void>(streams_.Restore(std::move(streams[i]), now_ns));
  }
  return {};
}

void DnsService::Resume(uint64_t now_ns) {
  now_ns_ = now_ns;
  for (const auto& [from, message] : std::exchange(restored_, {})) {
    resolver_->Query(from, message, DnsTransport::kDatagram, now_ns);
  }
  streams_.Resume();
}

}  // namespace virtbay::proxy_net
