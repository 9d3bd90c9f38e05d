// DomainName: a name of the DNS in its wire form (RFC 1035 3.1), lower case, as DHCP, router
// advertisements and DNS messages carry it; and reading one out of a message with its pointers.
// A value; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_PACKET_DOMAIN_NAME_H_
#define VIRTBAY_PLUGINS_PROXY_NET_PACKET_DOMAIN_NAME_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "plugins/proxy-net/packet/cursor.h"

namespace virtbay::proxy_net {

class DomainName {
 public:
  static constexpr size_t kMaxSize = 255;  // of the wire form

  // [any] The root.
  DomainName() : wire_(1, '\0') {}

  // [any] Labels of 1 to 63 letters, digits, '-' and '_' with dots between them, one more dot
  // allowed at the end; nothing when it is none.
  static std::optional<DomainName> Parse(std::string_view text);
  // [any] Reads the name at `*offset` of a whole message, following pointers that go backwards,
  // and moves `*offset` behind it; nothing, and `*offset` as it was, when there is none. Any bytes
  // are taken as labels.
  static std::optional<DomainName> Read(Bytes message, size_t* offset);

  // [any] Labels with dots, without the last; bytes that are not printable as \DDD.
  std::string ToString() const;
  // [any] The wire form: labels with their lengths and the root's zero.
  Bytes wire() const { return Bytes(reinterpret_cast<const uint8_t*>(wire_.data()), wire_.size()); }
  bool IsRoot() const { return wire_.size() == 1; }

  auto operator<=>(const DomainName&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const DomainName& n) {
    return H::combine(std::move(h), n.wire_);
  }

 private:
  std::string wire_;
};

// [any] Appends names one after the other, each without pointers (RFC 3315 8, RFC 8106 5.2).
void WriteNames(std::span<const DomainName> names, Writer* out);
// [any] Appends names, a common end written once and pointed to from the others (RFC 3397).
void WriteNamesCompressed(std::span<const DomainName> names, Writer* out);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_PACKET_DOMAIN_NAME_H_
