// Addresses of Ethernet, IPv4 and IPv6: values with their text forms and the classes that a policy
// asks about. An IPv6 address that carries an IPv4 address stays what it is until Canonical() is
// asked: what the guest wrote and what a socket would reach are two things.
// Plain values, usable on every thread. [any]
#ifndef VIRTBAY_PLUGINS_PROXY_NET_PACKET_ADDRESS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_PACKET_ADDRESS_H_

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "plugins/proxy-net/packet/cursor.h"

namespace virtbay::proxy_net {

// 48 bits of IEEE 802.
struct MacAddress {
  std::array<uint8_t, 6> bytes{};

  // [any] ff:ff:ff:ff:ff:ff.
  static constexpr MacAddress Broadcast() { return {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}; }
  // [any] Six groups of two hexadecimal digits with colons or dashes, or nothing.
  static std::optional<MacAddress> Parse(std::string_view text);
  // [any] In lower case with colons.
  std::string ToString() const;

  // [any] Whether it names a group, of which broadcast is one.
  bool IsMulticast() const { return (bytes[0] & 1) != 0; }
  bool IsBroadcast() const { return *this == Broadcast(); }
  bool IsZero() const { return *this == MacAddress(); }

  auto operator<=>(const MacAddress&) const = default;
};

// 32 bits, as a number whose first octet is the highest.
struct Ipv4Address {
  uint32_t value = 0;

  // [any] Four octets.
  static constexpr Ipv4Address Of(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
    return {uint32_t{a} << 24 | uint32_t{b} << 16 | uint32_t{c} << 8 | d};
  }
  // [any] Dotted decimal of exactly four parts without leading zeros, or nothing.
  static std::optional<Ipv4Address> Parse(std::string_view text);
  std::string ToString() const;

  bool IsUnspecified() const { return value == 0; }
  // [any] 0.0.0.0/8, "this network" (RFC 1122 3.2.1.3).
  bool IsThisNetwork() const { return value >> 24 == 0; }
  bool IsLoopback() const { return value >> 24 == 127; }
  bool IsLinkLocal() const { return value >> 16 == 0xa9fe; }
  bool IsMulticast() const { return value >> 28 == 0xe; }
  bool IsBroadcast() const { return value == 0xffffffff; }
  // [any] 240.0.0.0/4 without the broadcast address (RFC 1112 4).
  bool IsReserved() const { return value >> 28 == 0xf && !IsBroadcast(); }

  auto operator<=>(const Ipv4Address&) const = default;
};

// The netmask of a prefix of 0 to 32 bits.
constexpr Ipv4Address Netmask(uint8_t prefix) {
  return {prefix == 0 ? 0 : ~uint32_t{0} << (32 - (prefix > 32 ? 32 : prefix))};
}

// 128 bits in network byte order.
struct Ipv6Address {
  std::array<uint8_t, 16> bytes{};

  // [any] Eight groups.
  static constexpr Ipv6Address Of(std::array<uint16_t, 8> groups) {
    Ipv6Address a;
    for (size_t i = 0; i < 8; ++i) {
      a.bytes[2 * i] = static_cast<uint8_t>(groups[i] >> 8);
      a.bytes[2 * i + 1] = static_cast<uint8_t>(groups[i]);
    }
    return a;
  }
  // [any] Text of RFC 4291 2.2 without scope or brackets, or nothing.
  static std::optional<Ipv6Address> Parse(std::string_view text);
  // [any] As RFC 5952 writes it.
  std::string ToString() const;

  // [any] fe80::/64 with the EUI-64 of a MAC address (RFC 4291 appendix A).
  static Ipv6Address LinkLocalOf(const MacAddress& mac);
  // [any] The first 64 bits of `prefix` with the EUI-64 of a MAC address.
  static Ipv6Address EuiOf(const Ipv6Address& prefix, const MacAddress& mac);
  // [any] ff02::1:ffXX:XXXX of this address (RFC 4291 2.7.1).
  Ipv6Address SolicitedNode() const;
  // [any] 33:33 and the last 32 bits (RFC 2464 7).
  MacAddress MulticastMac() const;

  bool IsUnspecified() const { return *this == Ipv6Address(); }
  bool IsLoopback() const;
  bool IsLinkLocal() const { return bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80; }
  // [any] fec0::/10, deprecated (RFC 3879).
  bool IsSiteLocal() const { return bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0xc0; }
  bool IsUniqueLocal() const { return (bytes[0] & 0xfe) == 0xfc; }
  bool IsMulticast() const { return bytes[0] == 0xff; }
  // [any] ::ffff:0:0/96.
  bool IsV4Mapped() const;
  // [any] ::/96, but for :: and ::1 (RFC 4291 2.5.5.1).
  bool IsV4Compatible() const;
  // [any] ::ffff:0:a.b.c.d, for translators (RFC 7915).
  bool IsV4Translated() const;
  // [any] 64:ff9b::/96 (RFC 6052).
  bool IsNat64() const;
  // [any] 64:ff9b:1::/48, of which each network has its own length (RFC 8215).
  bool IsLocalNat64() const;
  // [any] 2002::/16 (RFC 3056).
  bool Is6to4() const { return bytes[0] == 0x20 && bytes[1] == 0x02; }
  // [any] 2001::/32 (RFC 4380).
  bool IsTeredo() const {
    return bytes[0] == 0x20 && bytes[1] == 0x01 && bytes[2] == 0 && bytes[3] == 0;
  }
  // [any] ISATAP interface identifiers, 0000:5efe or 0200:5efe and an IPv4 address (RFC 5214 6.1).
  bool IsIsatap() const;
  // [any] The IPv4 address inside a mapped, compatible, NAT64, 6to4 or ISATAP address.
  std::optional<Ipv4Address> EmbeddedIpv4() const;
  // [any] Whether the first `length` bits are those of `prefix`.
  bool InPrefix(const Ipv6Address& prefix, uint8_t length) const;

  auto operator<=>(const Ipv6Address&) const = default;
};

// ff02::1, all nodes of the link.
inline constexpr Ipv6Address kAllNodes = Ipv6Address::Of({0xff02, 0, 0, 0, 0, 0, 0, 1});
// ff02::2, all routers of the link.
inline constexpr Ipv6Address kAllRouters = Ipv6Address::Of({0xff02, 0, 0, 0, 0, 0, 0, 2});
// ff02::1:2, all DHCP servers and relays (RFC 8415 7.1).
inline constexpr Ipv6Address kAllDhcpServers = Ipv6Address::Of({0xff02, 0, 0, 0, 0, 0, 1, 2});

// Either kind. IPv4 fills the first four bytes, the others are zero: equal addresses have equal
// bytes, so that it can be hashed and compared whole.
class IpAddress {
 public:
  // [any] 0.0.0.0.
  constexpr IpAddress() = default;
  // NOLINTNEXTLINE(google-explicit-constructor)
  constexpr IpAddress(Ipv4Address a)
      : bytes_{static_cast<uint8_t>(a.value >> 24), static_cast<uint8_t>(a.value >> 16),
               static_cast<uint8_t>(a.value >> 8), static_cast<uint8_t>(a.value)} {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  constexpr IpAddress(const Ipv6Address& a) : bytes_(a.bytes), v6_(true) {}

  // [any] Either text form, or nothing.
  static std::optional<IpAddress> Parse(std::string_view text);
  std::string ToString() const;

  bool is_v4() const { return !v6_; }
  bool is_v6() const { return v6_; }
  // [any] Precondition: is_v4().
  Ipv4Address v4() const { return Ipv4Address::Of(bytes_[0], bytes_[1], bytes_[2], bytes_[3]); }
  // [any] Precondition: is_v6().
  Ipv6Address v6() const { return {bytes_}; }
  // [any] 4 or 16 bytes in network byte order.
  Bytes bytes() const { return Bytes(bytes_).first(v6_ ? 16 : 4); }

  bool IsUnspecified() const { return v6_ ? v6().IsUnspecified() : v4().IsUnspecified(); }
  bool IsLoopback() const { return v6_ ? v6().IsLoopback() : v4().IsLoopback(); }
  bool IsLinkLocal() const { return v6_ ? v6().IsLinkLocal() : v4().IsLinkLocal(); }
  bool IsMulticast() const { return v6_ ? v6().IsMulticast() : v4().IsMulticast(); }
  // [any] The address that a socket of the host would reach: the IPv4 address of a v4-mapped one,
  // itself otherwise.
  IpAddress Canonical() const;

  auto operator<=>(const IpAddress&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const IpAddress& a) {
    return H::combine(H::combine_contiguous(std::move(h), a.bytes_.data(), a.bytes_.size()), a.v6_);
  }

 private:
  std::array<uint8_t, 16> bytes_{};
  bool v6_ = false;
};

// An address and a port of TCP or UDP, or an identifier of ICMP.
struct Endpoint {
  IpAddress address;
  uint16_t port = 0;

  // [any] ADDRESS:PORT, IPv6 in brackets.
  std::string ToString() const;

  auto operator<=>(const Endpoint&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const Endpoint& e) {
    return H::combine(std::move(h), e.address, e.port);
  }
};

// [any] Reads an address from a cursor; zero when it fails.
MacAddress ReadMac(Reader* in);
Ipv4Address ReadIpv4(Reader* in);
Ipv6Address ReadIpv6(Reader* in);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_PACKET_ADDRESS_H_
