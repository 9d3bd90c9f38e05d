// Messages of the DNS (RFC 1035, EDNS of RFC 6891): what a forwarder has to read and write of them.
// Stateless functions over the caller's bytes; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_DNS_MESSAGE_H_
#define VIRTBAY_PLUGINS_PROXY_NET_DNS_MESSAGE_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "plugins/proxy-net/packet/cursor.h"
#include "plugins/proxy-net/packet/domain_name.h"

namespace virtbay::proxy_net {

inline constexpr size_t kDnsHeaderSize = 12;
inline constexpr size_t kDnsMaxMessage = 65535;
inline constexpr uint16_t kDnsMinDatagram = 512;

inline constexpr uint16_t kTypeA = 1;
inline constexpr uint16_t kTypeCname = 5;
inline constexpr uint16_t kTypeAaaa = 28;
inline constexpr uint16_t kTypeOpt = 41;
inline constexpr uint16_t kTypeAny = 255;
inline constexpr uint16_t kClassIn = 1;

inline constexpr uint16_t kFlagResponse = 0x8000;
inline constexpr uint16_t kFlagAuthoritative = 0x0400;
inline constexpr uint16_t kFlagTruncated = 0x0200;
inline constexpr uint16_t kFlagRecursionDesired = 0x0100;
inline constexpr uint16_t kFlagRecursionAvailable = 0x0080;
inline constexpr uint16_t kOpcodeMask = 0x7800;

inline constexpr uint8_t kRcodeNoError = 0;
inline constexpr uint8_t kRcodeFormErr = 1;
inline constexpr uint8_t kRcodeServFail = 2;
inline constexpr uint8_t kRcodeNotImp = 4;
inline constexpr uint8_t kRcodeRefused = 5;

struct DnsQuestion {
  DomainName name;
  uint16_t type = 0;
  uint16_t klass = 0;
  bool operator==(const DnsQuestion&) const = default;
};

// A query with exactly one question.
struct DnsQuery {
  uint16_t id = 0;
  uint16_t flags = 0;
  DnsQuestion question;
  size_t question_end = 0;            // where the question ends in the message
  std::optional<uint16_t> edns_size;  // the datagrams that the client takes, in bytes
  // [any] The datagram that the client takes, in bytes.
  uint16_t datagram_size() const {
    const uint16_t size = edns_size.value_or(kDnsMinDatagram);
    return size < kDnsMinDatagram ? kDnsMinDatagram : size;
  }
};

// What was wrong with a query.
enum class QueryFault : uint8_t {
  kNone,
  kIgnore,   // no query at all: shorter than a header, or a response
  kFormErr,  // to be answered so
  kNotImp,   // another opcode than QUERY
};

// [any] Reads a query, all of its records; `out` has its id and flags unless it is to be ignored.
QueryFault ParseQuery(Bytes message, DnsQuery* out);

// A resource record within a message.
struct DnsRecord {
  DomainName name;
  uint16_t type = 0;
  uint16_t klass = 0;
  uint32_t ttl = 0;
  size_t data = 0;  // where its data begins in the message
  uint16_t size = 0;
};
// [any] Reads the record at `*offset` and moves behind it; false when there is none.
bool ReadRecord(Bytes message, size_t* offset, DnsRecord* out);

// What a response says, when it is one to the question.
struct DnsResponse {
  uint8_t rcode = 0;
  bool truncated = false;
  uint16_t answers = 0;
  size_t answers_at = 0;  // where the records begin
};
enum class ResponseFault : uint8_t {
  kNone,
  kMismatch,   // of another id or question, or no response
  kMalformed,  // counts or lengths that the message does not have
};
// [any] Checks a response against the id and question that were sent, record by record; one that
// says that it is truncated may end early. A response without a question is taken only as a
// failure.
ResponseFault CheckResponse(Bytes message, uint16_t id, const DnsQuestion& question,
                            DnsResponse* out);

// [any] A response without records to a query: its header and, when that was read, its question.
// `truncated`: says so, whereupon the client asks over TCP. Bytes written, 0 without room.
size_t WriteEmptyResponse(Bytes query, size_t question_end, uint8_t rcode, bool truncated,
                          std::span<uint8_t> out);

// [any] Writes a query for a question, with EDNS of `edns_size` when there is one.
size_t WriteQuery(uint16_t id, uint16_t flags, const DnsQuestion& question,
                  std::optional<uint16_t> edns_size, std::span<uint8_t> out);

// [any] Appends a record of `message` with its names written out, so that it can stand in another
// message; false, and the writer fails, when its data is not well formed.
bool CopyRecord(Bytes message, const DnsRecord& record, Writer* out);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_DNS_MESSAGE_H_
