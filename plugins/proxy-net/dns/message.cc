#include "plugins/proxy-net/dns/message.h"

#include <algorithm>

namespace virtbay::proxy_net {
namespace {

bool ReadQuestion(Bytes message, size_t* offset, DnsQuestion* out) {
  const auto name = DomainName::Read(message, offset);
  if (!name.has_value()) return false;
  Reader in(message.subspan(*offset));
  out->name = *name;
  out->type = in.U16();
  out->klass = in.U16();
  *offset += 4;
  return in.ok();
}

}  // namespace

bool ReadRecord(Bytes message, size_t* offset, DnsRecord* out) {
  size_t at = *offset;
  const auto name = DomainName::Read(message, &at);
  if (!name.has_value()) return false;
  Reader in(message.subspan(at));
  out->name = *name;
  out->type = in.U16();
  out->klass = in.U16();
  out->ttl = in.U32();
  out->size = in.U16();
  out->data = at + in.position();
  in.Skip(out->size);
  if (!in.ok()) return false;
  *offset = at + in.position();
  return true;
}

QueryFault ParseQuery(Bytes message, DnsQuery* out) {
  Reader in(message);
  out->id = in.U16();
  out->flags = in.U16();
  const uint16_t questions = in.U16();
  const uint16_t answers = in.U16();
  const uint16_t authorities = in.U16();
  const uint16_t additional = in.U16();
  if (!in.ok() || (out->flags & kFlagResponse) != 0) return QueryFault::kIgnore;
  if ((out->flags & kOpcodeMask) != 0) return QueryFault::kNotImp;
  if (questions != 1 || answers != 0 || authorities != 0) return QueryFault::kFormErr;
  size_t at = kDnsHeaderSize;
  // Without pointers: there is nothing before it to point to but the header, which changes.
  if (!ReadQuestion(message, &at, &out->question) ||
      at != kDnsHeaderSize + out->question.name.wire().size() + 4) {
    return QueryFault::kFormErr;
  }
  out->question_end = at;
  for (uint16_t i = 0; i < additional; ++i) {
    DnsRecord record;
    if (!ReadRecord(message, &at, &record)) return QueryFault::kFormErr;
    if (record.type != kTypeOpt) continue;
    // One at most, and of the root (RFC 6891 6.1.1).
    if (out->edns_size.has_value() || !record.name.IsRoot()) return QueryFault::kFormErr;
    out->edns_size = record.klass;
  }
  return at == message.size() ? QueryFault::kNone : QueryFault::kFormErr;
}

ResponseFault CheckResponse(Bytes message, uint16_t id, const DnsQuestion& question,
                            DnsResponse* out) {
  Reader in(message);
  const uint16_t got_id = in.U16();
  const uint16_t flags = in.U16();
  const uint16_t questions = in.U16();
  out->answers = in.U16();
  const uint32_t others = uint32_t{in.U16()} + in.U16();
  if (!in.ok()) return ResponseFault::kMalformed;
  if (got_id != id || (flags & kFlagResponse) == 0 || (flags & kOpcodeMask) != 0) {
    return ResponseFault::kMismatch;
  }
  out->rcode = flags & 0xf;
  out->truncated = (flags & kFlagTruncated) != 0;
  size_t at = kDnsHeaderSize;
  if (questions == 0) {
    // Who cannot read a query cannot repeat its question either.
    if (out->rcode == kRcodeNoError) return ResponseFault::kMismatch;
  } else {
    DnsQuestion got;
    if (!ReadQuestion(message, &at, &got)) return ResponseFault::kMalformed;
    if (questions != 1 || got != question) return ResponseFault::kMismatch;
  }
  out->answers_at = at;
  for (uint32_t i = 0; i < out->answers + others; ++i) {
    DnsRecord record;
    if (ReadRecord(message, &at, &record)) continue;
    return out->truncated ? ResponseFault::kNone : ResponseFault::kMalformed;
  }
  return ResponseFault::kNone;
}

size_t WriteEmptyResponse(Bytes query, size_t question_end, uint8_t rcode, bool truncated,
                          std::span<uint8_t> out) {
  Reader in(query);
  Writer w(out);
  w.U16(in.U16());
  const uint16_t flags = in.U16();
  w.U16(static_cast<uint16_t>(kFlagResponse | (flags & (kOpcodeMask | kFlagRecursionDesired)) |
                              kFlagRecursionAvailable | (truncated ? kFlagTruncated : 0) | rcode));
  const bool question = question_end > kDnsHeaderSize && question_end <= query.size();
  w.U16(question ? 1 : 0);
  w.Fill(6);
  if (question) w.Put(query.subspan(kDnsHeaderSize, question_end - kDnsHeaderSize));
  return in.ok() && w.ok() ? w.position() : 0;
}

size_t WriteQuery(uint16_t id, uint16_t flags, const DnsQuestion& question,
                  std::optional<uint16_t> edns_size, std::span<uint8_t> out) {
  Writer w(out);
  w.U16(id);
  w.U16(flags);
  w.U16(1);
  w.Fill(4);
  w.U16(edns_size.has_value() ? 1 : 0);
  w.Put(question.name.wire());
  w.U16(question.type);
  w.U16(question.klass);
  if (edns_size.has_value()) {
    w.U8(0);
    w.U16(kTypeOpt);
    w.U16(*edns_size);
    w.U32(0);
    w.U16(0);
  }
  return w.ok() ? w.position() : 0;
}

bool CopyRecord(Bytes message, const DnsRecord& record, Writer* out) {
  out->Put(record.name.wire());
  out->U16(record.type);
  out->U16(record.klass);
  out->U32(record.ttl);
  const size_t length_at = out->position();
  out->U16(0);
  // The types whose data may hold pointers (RFC 3597 4): bytes, then names, then bytes.
  size_t before = 0;
  int names = 0;
  switch (record.type) {
    case 2:   // NS
    case 5:   // CNAME
    case 12:  // PTR
      names = 1;
      break;
    case 6:  // SOA
      names = 2;
      break;
    case 15:  // MX
      before = 2;
      names = 1;
      break;
    default:
      break;
  }
  const size_t end = record.data + record.size;
  size_t at = record.data + std::min<size_t>(before, record.size);
  if (end > message.size()) return out->Fail(), false;
  out->Put(message.subspan(record.data, at - record.data));
  for (; names > 0; --names) {
    const auto name = DomainName::Read(message, &at);
    if (!name.has_value() || at > end) return out->Fail(), false;
    out->Put(name->wire());
  }
  out->Put(message.subspan(at, end - at));
  if (!out->ok()) return false;
  out->PatchU16(length_at, static_cast<uint16_t>(out->position() - length_at - 2));
  return true;
}

}  // namespace virtbay::proxy_net
