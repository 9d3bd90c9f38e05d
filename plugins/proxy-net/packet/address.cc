#include "plugins/proxy-net/packet/address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>

namespace virtbay::proxy_net {
namespace {

// inet_ntop and inet_pton know every corner of both text forms.
template <size_t N>
std::string Print(int family, const std::array<uint8_t, N>& bytes) {
  char text[INET6_ADDRSTRLEN] = {};
  return inet_ntop(family, bytes.data(), text, sizeof text) != nullptr ? text : "";
}

template <size_t N>
bool Scan(int family, std::string_view text, std::array<uint8_t, N>* out) {
  char zero_terminated[INET6_ADDRSTRLEN];
  if (text.size() >= sizeof zero_terminated || text.find('\0') != text.npos) return false;
  std::copy(text.begin(), text.end(), zero_terminated);
  zero_terminated[text.size()] = '\0';
  return inet_pton(family, zero_terminated, out->data()) == 1;
}

bool StartsWith(const std::array<uint8_t, 16>& bytes, std::initializer_list<uint8_t> start) {
  return std::equal(start.begin(), start.end(), bytes.begin());
}

Ipv4Address At(const std::array<uint8_t, 16>& bytes, size_t i) {
  return Ipv4Address::Of(bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]);
}

}  // namespace

std::optional<MacAddress> MacAddress::Parse(std::string_view text) {
  MacAddress mac;
  if (text.size() != 17) return std::nullopt;
  const char separator = text[2];
  if (separator != ':' && separator != '-') return std::nullopt;
  for (size_t i = 0; i < 6; ++i) {
    if (i != 0 && text[3 * i - 1] != separator) return std::nullopt;
    const char* at = text.data() + 3 * i;
    const auto [end, error] = std::from_chars(at, at + 2, mac.bytes[i], 16);
    if (error != std::errc() || end != at + 2) return std::nullopt;
  }
  return mac;
}

std::string MacAddress::ToString() const {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : bytes) {
    if (!text.empty()) text.push_back(':');
    text.push_back(kDigits[byte >> 4]);
    text.push_back(kDigits[byte & 15]);
  }
  return text;
}

std::optional<Ipv4Address> Ipv4Address::Parse(std::string_view text) {
  std::array<uint8_t, 4> bytes;
  if (!Scan(AF_INET, text, &bytes)) return std::nullopt;
  return Of(bytes[0], bytes[1], bytes[2], bytes[3]);
}

std::string Ipv4Address::ToString() const {
  return Print<4>(AF_INET, {static_cast<uint8_t>(value >> 24), static_cast<uint8_t>(value >> 16),
                            static_cast<uint8_t>(value >> 8), static_cast<uint8_t>(value)});
}

std::optional<Ipv6Address> Ipv6Address::Parse(std::string_view text) {
  Ipv6Address a;
  if (!Scan(AF_INET6, text, &a.bytes)) return std::nullopt;
  return a;
}

std::string Ipv6Address::ToString() const { return Print(AF_INET6, bytes); }

Ipv6Address Ipv6Address::LinkLocalOf(const MacAddress& mac) {
  return EuiOf(Of({0xfe80, 0, 0, 0, 0, 0, 0, 0}), mac);
}

Ipv6Address Ipv6Address::EuiOf(const Ipv6Address& prefix, const MacAddress& mac) {
  Ipv6Address a = prefix;
  const auto& m = mac.bytes;
  const std::array<uint8_t, 8> id = {
      static_cast<uint8_t>(m[0] ^ 2), m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]};
  std::copy(id.begin(), id.end(), a.bytes.begin() + 8);
  return a;
}

Ipv6Address Ipv6Address::SolicitedNode() const {
  Ipv6Address a = Of({0xff02, 0, 0, 0, 0, 1, 0xff00, 0});
  std::copy(bytes.begin() + 13, bytes.end(), a.bytes.begin() + 13);
  return a;
}

MacAddress Ipv6Address::MulticastMac() const {
  return {{0x33, 0x33, bytes[12], bytes[13], bytes[14], bytes[15]}};
}

bool Ipv6Address::IsLoopback() const { return *this == Of({0, 0, 0, 0, 0, 0, 0, 1}); }

bool Ipv6Address::IsV4Mapped() const {
  return StartsWith(bytes, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff});
}

bool Ipv6Address::IsV4Compatible() const {
  return StartsWith(bytes, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) && !IsUnspecified() &&
         !IsLoopback();
}

bool Ipv6Address::IsV4Translated() const {
  return StartsWith(bytes, {0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0});
}

bool Ipv6Address::IsNat64() const {
  return StartsWith(bytes, {0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0});
}

bool Ipv6Address::IsLocalNat64() const { return StartsWith(bytes, {0, 0x64, 0xff, 0x9b, 0, 1}); }

bool Ipv6Address::IsIsatap() const {
  return (bytes[8] & 0xfd) == 0 && bytes[9] == 0 && bytes[10] == 0x5e && bytes[11] == 0xfe;
}

std::optional<Ipv4Address> Ipv6Address::EmbeddedIpv4() const {
  if (IsV4Mapped() || IsV4Compatible() || IsV4Translated() || IsNat64()) return At(bytes, 12);
  if (Is6to4()) return At(bytes, 2);
  if (IsIsatap()) return At(bytes, 12);
  return std::nullopt;
}

bool Ipv6Address::InPrefix(const Ipv6Address& prefix, uint8_t length) const {
  const size_t whole = std::min<size_t>(length, 128) / 8;
  if (!std::equal(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(whole),
                  prefix.bytes.begin())) {
    return false;
  }
  if (whole == 16 || length % 8 == 0) return true;
  return ((bytes[whole] ^ prefix.bytes[whole]) >> (8 - length % 8)) == 0;
}

std::optional<IpAddress> IpAddress::Parse(std::string_view text) {
  if (const auto a = Ipv4Address::Parse(text)) return IpAddress(*a);
  if (const auto a = Ipv6Address::Parse(text)) return IpAddress(*a);
  return std::nullopt;
}

std::string IpAddress::ToString() const { return v6_ ? v6().ToString() : v4().ToString(); }

IpAddress IpAddress::Canonical() const {
  return v6_ && v6().IsV4Mapped() ? IpAddress(At(bytes_, 12)) : *this;
}

std::string Endpoint::ToString() const {
  std::string text = address.ToString();
  if (address.is_v6()) text.insert(0, 1, '[').push_back(']');
  return text.append(":").append(std::to_string(port));
}

MacAddress ReadMac(Reader* in) {
  MacAddress mac;
  in->Copy(mac.bytes);
  return mac;
}

Ipv4Address ReadIpv4(Reader* in) { return {in->U32()}; }

Ipv6Address ReadIpv6(Reader* in) {
  Ipv6Address a;
  in->Copy(a.bytes);
  return a;
}

}  // namespace virtbay::proxy_net
