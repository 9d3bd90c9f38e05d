#include "plugins/proxy-net/dns/resolv_conf.h"

#include <fcntl.h>
#include <net/if.h>
#include <sys/inotify.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <optional>
#include <utility>

namespace virtbay::proxy_net {
namespace {

constexpr uint16_t kDnsPort = 53;

std::string_view Word(std::string_view* line) {
  const char* const blanks = " \t\r";
  line->remove_prefix(std::min(line->find_first_not_of(blanks), line->size()));
  const std::string_view word = line->substr(0, line->find_first_of(blanks));
  line->remove_prefix(word.size());
  return word;
}

std::optional<DnsServer> ServerOf(std::string_view text) {
  DnsServer out;
  const size_t percent = text.find('%');
  const auto address = IpAddress::Parse(text.substr(0, percent));
  if (!address.has_value()) return std::nullopt;
  out.endpoint = {*address, kDnsPort};
  if (percent == text.npos) return out;
  const std::string scope(text.substr(percent + 1));
  const auto [end, error] = std::from_chars(scope.data(), scope.data() + scope.size(), out.scope);
  if (error != std::errc() || end != scope.data() + scope.size()) {
    out.scope = if_nametoindex(scope.c_str());
  }
  return out;
}

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == path.npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

ResolvConf ResolvConf::Parse(std::string_view text) {
  ResolvConf out;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::string_view key = Word(&line);
    if (key == "nameserver") {
      const auto server = ServerOf(Word(&line));
      if (server.has_value() && out.servers.size() < kMaxServers) out.servers.push_back(*server);
    } else if (key == "search" || key == "domain") {
      // The last of these lines counts.
      out.search.clear();
      for (std::string_view word = Word(&line); !word.empty(); word = Word(&line)) {
        const auto name = DomainName::Parse(word);
        if (name.has_value() && !name->IsRoot() && out.search.size() < kMaxSearch) {
          out.search.push_back(*name);
        }
      }
    }
  }
  if (out.servers.empty()) out.servers.push_back({{Ipv4Address::Of(127, 0, 0, 1), kDnsPort}, 0});
  return out;
}

ResolvConf ResolvConf::Load(const std::string& path) {
  std::string text;
  const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  char chunk[4096];
  while (file.valid() && text.size() < 65536) {
    const ssize_t n = read(file.get(), chunk, sizeof chunk);
    if (n <= 0) break;
    text.append(chunk, static_cast<size_t>(n));
  }
  return Parse(text);
}

sdk::Result<ResolvConfWatcher> ResolvConfWatcher::Open(std::string path) {
  ResolvConfWatcher out;
  out.path_ = std::move(path);
  out.fd_ = Fd(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!out.fd_.valid()) return sdk::Errno(errno, "inotify_init1 for " + out.path_);
  out.Watch();
  out.current_ = ResolvConf::Load(out.path_);
  return out;
}

// The folders are watched: a file that is replaced takes its watch with it. A change between the
// look at the link and the watch is seen, since the file is read behind both.
void ResolvConfWatcher::Watch() {
  std::vector<int> watches;
  const auto add = [&](const std::string& folder) {
    const int watch = inotify_add_watch(
        fd_.get(), folder.c_str(),
        IN_CLOSE_WRITE | IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_DELETE_SELF);
    if (watch >= 0) watches.push_back(watch);
  };
  add(FolderOf(path_));
  char target[PATH_MAX];
  if (realpath(path_.c_str(), target) != nullptr) add(FolderOf(target));
  // A folder that is watched already keeps its watch; one that is removed makes an event, so that
  // only those go that are not wanted any more.
  for (const int old : watches_) {
    if (std::find(watches.begin(), watches.end(), old) == watches.end()) {
      inotify_rm_watch(fd_.get(), old);
    }
  }
  watches_ = std::move(watches);
}

bool ResolvConfWatcher::OnReady() {
  bool any = false;
  alignas(inotify_event) char events[4096];
  for (int i = 0; i < 64; ++i) {
    if (read(fd_.get(), events, sizeof events) <= 0) break;
    any = true;
  }
  if (!any) return false;
  Watch();
  ResolvConf now = ResolvConf::Load(path_);
  if (now == current_) return false;
  current_ = std::move(now);
  return true;
}

}  // namespace virtbay::proxy_net
