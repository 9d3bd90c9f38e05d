#include "plugins/proxy-net/policy/saved_rules.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "plugins/proxy-net/policy/policy.h"

namespace virtbay::proxy_net {
namespace {

sdk::Error Wrong(const std::string& why) {
  return sdk::InvalidArgument("state of the rules: " + why);
}

// Without its end; nothing: there is no whole line. A rule that is cut may be another one.
std::optional<std::string_view> TakeLine(std::string_view* text) {
  const size_t end = text->find('\n');
  if (end == text->npos) return std::nullopt;
  const std::string_view line = text->substr(0, end);
  text->remove_prefix(end + 1);
  return line;
}

// How many rules; nothing: it is no number, or more than there may be.
std::optional<size_t> CountOf(std::string_view text) {
  size_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  if (!whole || count > Policy::kMaxRules) return std::nullopt;
  return count;
}

sdk::Status TakeRules(std::string_view* text, size_t count, std::vector<Rule>* rules) {
  for (size_t i = 0; i < count; ++i) {
    const std::optional<std::string_view> line = TakeLine(text);
    if (!line.has_value()) {
      return Wrong("ends after " + std::to_string(i) + " of " + std::to_string(count) + " rules");
    }
    sdk::Result<Rule> rule = Rule::Parse(*line);
    if (!rule.ok()) return Wrong(rule.error().text);
    rules->push_back(*rule);
  }
  return {};
}

}  // namespace

sdk::Result<SavedRules> SavedRules::Parse(std::string_view text) {
  const std::string_view head = TakeLine(&text).value_or("");
  const size_t space = std::min(head.find(' '), head.size());
  const std::optional<size_t> of_option = CountOf(head.substr(0, space));
  const std::optional<size_t> in_force = CountOf(head.substr(std::min(space + 1, head.size())));
  if (!of_option.has_value() || !in_force.has_value()) {
    return Wrong("does not begin with two numbers up to " + std::to_string(Policy::kMaxRules));
  }
  SavedRules out;
  sdk::Status status = TakeRules(&text, *of_option, &out.of_option);
  if (status.ok()) status = TakeRules(&text, *in_force, &out.in_force);
  if (!status.ok()) return status.error();
  if (!text.empty()) return Wrong("goes on behind its rules");
  return out;
}

std::string SavedRules::ToString() const {
  std::string text = std::to_string(of_option.size());
  text.append(" ").append(std::to_string(in_force.size())).append("\n");
  for (const auto* rules : {&of_option, &in_force}) {
    for (const Rule& rule : *rules) text.append(rule.ToString()).append("\n");
  }
  return text;
}

SavedRules::Changes SavedRules::AtRunTime() const {
  Changes changes{.added = 0, .removed = of_option.size()};
  auto next = of_option.begin();
  for (const Rule& rule : in_force) {
    const auto at = std::find(next, of_option.end(), rule);
    if (at == of_option.end()) {
      ++changes.added;
    } else {
      --changes.removed;
      next = at + 1;
    }
  }
  return changes;
}

}  // namespace virtbay::proxy_net
