// Fuzz target: messages of the DNS, from a guest and from a server, and texts of resolv.conf.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "plugins/proxy-net/dns/dns_service.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace virtbay::proxy_net;

void Expect(bool holds) {
  if (!holds) abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A copy that ends where the message does.
  const std::vector<uint8_t> copy(data, data + size);
  const Bytes message(copy);
  for (size_t at = 0; at < message.size() && at < 64; ++at) {
    size_t offset = at;
    const auto name = DomainName::Read(message, &offset);
    Expect(!name.has_value() || (offset > at && offset <= message.size() &&
                                 name->wire().size() <= DomainName::kMaxSize));
    if (name.has_value()) (void)name->ToString();
  }

  // To a resolver that has servers for nothing: every query is answered at once, once, or never.
  ResolverConfig config;
  config.max_in_flight = 1;
  Expect(config.records.Add("a.test=b.test,b.test=192.0.2.1,c.test=example.org").ok());
  int answers = 0;
  auto resolver = Resolver::Create(config, [&](const DnsClient&, Bytes answer, DnsTransport) {
    ++answers;
    DnsResponse said;
    DnsQuery query;
    const QueryFault fault = ParseQuery(message, &query);
    if (fault == QueryFault::kNone) {
      Expect(CheckResponse(answer, query.id, query.question, &said) == ResponseFault::kNone);
    }
    Expect(answer.size() >= kDnsHeaderSize && answer.size() <= kDnsMaxMessage);
  });
  Expect(resolver.ok());
  (*resolver)->Query({}, message, DnsTransport::kDatagram, 0);
  Expect(answers <= 1 && (*resolver)->in_flight() == 0);

  // As a response to the question that it repeats.
  DnsQuestion question;
  size_t at = kDnsHeaderSize;
  const auto name = DomainName::Read(message, &at);
  if (name.has_value() && message.size() - at >= 4) {
    Reader in(message.subspan(at));
    question = {*name, in.U16(), in.U16()};
    DnsResponse said;
    const auto id = static_cast<uint16_t>(message[0] << 8 | message[1]);
    if (CheckResponse(message, id, question, &said) == ResponseFault::kNone) {
      size_t offset = said.answers_at;
      std::vector<uint8_t> room(65535);
      Writer out(room);
      for (uint16_t i = 0; i < said.answers; ++i) {
        DnsRecord record;
        if (!ReadRecord(message, &offset, &record)) break;
        Expect(record.data + record.size <= message.size());
        if (!CopyRecord(message, record, &out)) break;
      }
    }
  }
  const ResolvConf conf =
      ResolvConf::Parse({reinterpret_cast<const char*>(copy.data()), copy.size()});
  Expect(!conf.servers.empty() && conf.servers.size() <= ResolvConf::kMaxServers);
  return 0;
}
