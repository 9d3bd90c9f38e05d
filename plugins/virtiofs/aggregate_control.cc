// The commands by which shares are added, removed and listed.
#include <algorithm>
#include <utility>
#include <vector>

#include "plugins/virtiofs/aggregate.h"
#include "plugins/virtiofs/fs.h"

namespace virtbay::virtiofs {
namespace {

using sdk::Error;
using sdk::Status;

using Lines = std::vector<std::pair<std::string, std::string>>;

Status Split(std::string_view text, Lines* lines) {
  if (text.find('\0') != std::string_view::npos) return sdk::InvalidArgument("a NUL in the text");
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    if (line.empty()) continue;
    const size_t equals = line.find('=');
    if (equals == 0 || equals == std::string_view::npos) {
      std::string problem(line);
      return sdk::InvalidArgument(problem.append(" is not KEY=VALUE"));
    }
    const std::string key(line.substr(0, equals));
    const auto same = [&key](const auto& other) { return other.first == key; };
    if (std::any_of(lines->begin(), lines->end(), same)) {
      return sdk::InvalidArgument(key + " is given twice");
    }
    lines->emplace_back(key, line.substr(equals + 1));
  }
  return {};
}

}  // namespace

sdk::Result<std::string> Aggregate::Control(std::string_view command, std::string_view text) {
  if (command == "share.add") return AddCommand(text);
  if (command == "share.remove") return RemoveCommand(text);
  if (command == "share.list") return ListCommand();
  return Error{VIRTBAY_UNIMPLEMENTED, 0, "the device knows share.add, share.remove, share.list"};
}

sdk::Result<std::string> Aggregate::AddCommand(std::string_view text) {
  Lines lines;
  if (Status status = Split(text, &lines); !status.ok()) return status.error();
  std::string name, path;
  // What the device's own options say holds for every share that does not say otherwise.
  ShareOptions options = fs_->options.share;
  bool named = false;
  for (const auto& [key, value] : lines) {
    Status status;
    if (key == "name") {
      name = value;
      named = true;
    } else if (key == "path") {
      path = value;
    } else {
      status = options.Set(key, value);
    }
    if (!status.ok()) return status.error();
  }
  if (named && name.empty()) return sdk::InvalidArgument("the share's name is empty");
  sdk::Result<Added> added = Add(name, path, options);
  if (!added.ok()) return added.error();
  std::string answer;
  answer.append("name=").append(added->name);
  answer.append("\nexisting=").append(added->existing ? "true" : "false").append("\n");
  return answer;
}

sdk::Result<std::string> Aggregate::RemoveCommand(std::string_view text) {
  Lines lines;
  if (Status status = Split(text, &lines); !status.ok()) return status.error();
  if (lines.size() != 1 || lines[0].first != "name") {
    return sdk::InvalidArgument("share.remove takes a name and nothing else");
  }
  if (Status status = Remove(lines[0].second); !status.ok()) return status.error();
  return std::string();
}

std::string Aggregate::ListCommand() const {
  std::string text;
  const auto put = [&text](std::string_view key, std::string_view value) {
    text.append(key).append("=").append(value).append("\n");
  };
  std::array<ShareRef, 32> some;
  uint64_t cookie = 0;
  for (size_t n = 0; (n = Next(cookie, some)) != 0;) {
    for (size_t i = 0; i < n; ++i) {
      const Share& share = *some[i];
      cookie = share.cookie;
      put("name", share.name);
      put("path", share.path);
      for (const auto& [key, value] : share.options.List()) put(key, value);
      text.push_back('\n');
    }
  }
  return text;
}

}  // namespace virtbay::virtiofs
