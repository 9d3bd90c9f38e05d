#include "plugins/proxy-net/dns/records.h"

#include <algorithm>
#include <string>
#include <utility>

namespace virtbay::proxy_net {
namespace {

sdk::Error Wrong(std::string_view text, std::string_view why) {
  std::string message = "\"";
  message.append(text).append("\" ").append(why);
  return sdk::InvalidArgument(std::move(message));
}

}  // namespace

sdk::Status StaticRecords::AddAddress(const DomainName& name, const IpAddress& address) {
  Entry& entry = entries_[name];
  if (entry.cname.has_value()) return Wrong(name.ToString(), "is an alias and has an address");
  if (count_ == kMaxRecords || entry.a.size() == kMaxAddresses ||
      entry.aaaa.size() == kMaxAddresses) {
    return Wrong(name.ToString(), "is one record too many");
  }
  ++count_;
  if (address.is_v4()) {
    entry.a.push_back(address.v4());
  } else {
    entry.aaaa.push_back(address.v6());
  }
  return {};
}

sdk::Status StaticRecords::AddAlias(const DomainName& name, const DomainName& target) {
  Entry& entry = entries_[name];
  if (!entry.a.empty() || !entry.aaaa.empty() || entry.cname.has_value()) {
    return Wrong(name.ToString(), "is an alias and something else as well");
  }
  if (name == target) return Wrong(name.ToString(), "is an alias of itself");
  if (count_ == kMaxRecords) return Wrong(name.ToString(), "is one record too many");
  ++count_;
  entry.cname = target;
  return {};
}

sdk::Status StaticRecords::Add(std::string_view text) {
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    std::string_view piece = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    while (!piece.empty() && piece.front() == ' ') piece.remove_prefix(1);
    while (!piece.empty() && piece.back() == ' ') piece.remove_suffix(1);
    if (piece.empty()) continue;
    const size_t equals = piece.find('=');
    if (equals == piece.npos) return Wrong(piece, "is not NAME=ADDRESS or NAME=NAME");
    const auto name = DomainName::Parse(piece.substr(0, equals));
    if (!name.has_value()) return Wrong(piece, "does not begin with a name");
    const std::string_view value = piece.substr(equals + 1);
    sdk::Status status;
    if (const auto address = IpAddress::Parse(value)) {
      status = AddAddress(*name, *address);
    } else if (const auto target = DomainName::Parse(value)) {
      status = AddAlias(*name, *target);
    } else {
      return Wrong(piece, "does not end with an address or a name");
    }
    if (!status.ok()) return status;
  }
  return {};
}

sdk::Status StaticRecords::CheckAliases() const {
  for (const auto& [name, entry] : entries_) {
    std::vector<const DomainName*> chain{&name};
    for (const Entry* at = &entry; at != nullptr && at->cname.has_value(); at = Find(*at->cname)) {
      const bool loop = std::any_of(chain.begin(), chain.end(),
                                    [&](const DomainName* known) { return *known == *at->cname; });
      chain.push_back(&*at->cname);
      if (!loop && chain.size() <= kMaxChain + 1) continue;
      std::string message;
      for (const DomainName* each : chain) {
        message.append(message.empty() ? "" : " = ").append(each->ToString());
      }
      message.append(loop ? " is a loop of aliases" : " has more than 8 aliases in a row");
      return sdk::InvalidArgument(std::move(message));
    }
  }
  return {};
}

const StaticRecords::Entry* StaticRecords::Find(const DomainName& name) const {
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second;
}

}  // namespace virtbay::proxy_net
