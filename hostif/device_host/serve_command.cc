// `virtbay serve`: a share (virtiofs), with virtiofsd's option names where the meaning is the same,
// or a network device (serve_net.h).
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "framework/base/status.h"
#include "hostif/device_host/aggregate_device.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/device_host/run_service.h"
#include "hostif/device_host/serve_net.h"
#include "hostif/device_host/wsl_service.h"

namespace virtbay::device_host {
namespace {

// What libvirt reads to learn which command line a virtiofsd has.
constexpr char kCapabilities[] =
    "{\n  \"type\": \"fs\",\n  \"features\": [\n    "
    "\"separate-options\"\n  ]\n}\n";

[[noreturn]] void Usage(const std::string& message) {
  throw CLI::ValidationError(message, CLI::ExitCodes::ValidationError);
}

class ServeCommand final : public Command {
 public:
  explicit ServeCommand(CLI::App* app)
      : app_(app->add_subcommand("serve", "Serve one device on a socket")) {
    app_->require_subcommand(0, 1);
    fs_ = app_->add_subcommand("virtiofs", "Share a directory; takes virtiofsd's options");
    AddSocketOptions();
    AddShareOptions();
    AddHostOptions();
    AddIgnoredOptions();
    for (const NetType& type : NetTypes()) nets_.push_back(std::make_unique<ServeNet>(app_, type));
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run() override {
    for (const std::unique_ptr<ServeNet>& net : nets_) {
      if (net->parsed()) return net->Run();
    }
    if (!fs_->parsed()) throw CLI::RequiredError("A subcommand");
    if (print_capabilities_) {
      std::cout << kCapabilities;
      return absl::OkStatus();
    }
    ServiceConfig config;
    DeviceConfig device = keys_;
    for (const std::string& list : compat_) ApplyCompat(list);
    const bool many = aggregate_ || !shares_.empty();
    if (many && !shared_dir_.empty()) Usage("--shared-dir: cannot be given together with --share");
    if (!many && shared_dir_.empty()) throw CLI::RequiredError("--shared-dir");
    FillSocket(&device);
    FillSpec(&device);
    if (many) FillShares(&device);
    config.control_socket = control_socket_;
    config.ready_fd = ready_fd_;
    config.rlimit_nofile = rlimit_nofile_;
    for (const std::string& dir : plugin_path_) config.plugin_dirs.emplace_back(dir);
    if (log_level_.empty()) log_level_ = debug_ ? "debug" : "info";
    const auto level = ParseLogLevel(log_level_ == "err" ? "error" : log_level_);
    if (!level.ok()) Usage(absl::StrCat("--log-level: ", level.status().message()));
    config.log_level = *level;
    config.syslog = syslog_;
    config.devices.push_back(std::move(device));
    return RunService(std::move(config));
  }

 private:
  void AddSocketOptions() {
    constexpr char kGroup[] = "Socket";
    fs_->add_option("--socket-path", socket_path_, "Socket to listen on")->group(kGroup);
    fs_->add_option("--fd", fd_, "Inherited listening socket (or socket activation, with neither)")
        ->group(kGroup);
    fs_->add_option("--socket-group", socket_group_, "Group that may connect")->group(kGroup);
  }

  void AddShareOptions() {
    constexpr char kGroup[] = "Share";
    fs_->add_option("--shared-dir", shared_dir_, "Directory to share")->group(kGroup);
    fs_->add_option("--share", shares_,
                    "NAME=DIR[;KEY=VALUE|;FLAG]...: one of many shares, with WSL's options")
        ->allow_extra_args(false)
        ->group(kGroup);
    fs_->add_flag("--aggregate", aggregate_,
                  "Many shares, with or without --share; more come by virtbay ctl")
        ->group(kGroup);
    fs_->add_option("--tag", tag_, "Name under which the guest mounts it")->group(kGroup);
    fs_->add_option("--cache", cache_, "never, metadata, auto or always (default auto)")
        ->check(CLI::IsMember({"never", "none", "metadata", "auto", "always"}))
        ->group(kGroup);
    fs_->add_option("--attr-timeout", attr_timeout_, "Seconds, instead of the policy's")
        ->group(kGroup);
    fs_->add_option("--entry-timeout", entry_timeout_, "Seconds, instead of the policy's")
        ->group(kGroup);
    fs_->add_option("--negative-timeout", negative_timeout_,
                    "Seconds for which the guest remembers that a name does not exist")
        ->group(kGroup);
    Flag("--readonly", "readonly", "The guest cannot change anything");
    Flag("--writeback,!--no-writeback", "writeback", "The guest may cache writes");
    Flag("--xattr,!--no-xattr", "xattr", "Extended attributes");
    Flag("--posix-acl,!--no-posix-acl", "posix-acl", "POSIX ACLs (implies --xattr)");
    Flag("--allow-direct-io,!--no-allow-direct-io", "allow-direct-io",
         "O_DIRECT of the guest reaches the host's file");
    Flag("--readdirplus,!--no-readdirplus", "readdirplus", "Attributes with directory entries");
    Flag("--announce-submounts,!--no-announce-submounts", "announce-submounts",
         "The guest sees the host's mount points");
    Flag("--killpriv-v2,!--no-killpriv-v2", "killpriv-v2", "The host clears setuid bits on writes");
    fs_->add_option_function<std::string>(
           "--option",
           [this](const std::string& text) {
             const size_t equals = text.find('=');
             if (equals == 0 || equals == std::string::npos) {
               Usage(absl::StrCat("--option: '", text, "' is not KEY=VALUE"));
             }
             const std::string key = text.substr(0, equals);
             if (!given_.insert(key).second) Usage(absl::StrCat("--option ", key, ": given twice"));
             options_[key] = text.substr(equals + 1);
           },
           "KEY=VALUE: any option of the plugin, see docs/usage.md")
        ->type_name("KEY=VALUE")
        ->multi_option_policy(CLI::MultiOptionPolicy::Throw)
        ->trigger_on_parse()
        ->group(kGroup);
    fs_->add_option("--request-queues", request_queues_, "1 to 8")
        ->check(CLI::Range(1, 8))
        ->group(kGroup);
    fs_->add_option("--max-write", max_write_, "Largest write, bytes")->group(kGroup);
    Text("--vcpus", "vcpus", "CPUs of the guest: as many request queues, at most 4");
    AddOwnerOptions();
  }

  void AddOwnerOptions() {
    Flag("--metadata", "metadata", "Owner, mode and device number are kept beside the host's own");
    Text("--uid", "uid", "Owner of every file");
    Text("--gid", "gid", "Group of every file");
    Text("--default_uid", "default_uid", "Owner of files without metadata");
    Text("--default_gid", "default_gid", "Group of files without metadata");
    Text("--mode", "mode", "Permissions of every file, octal");
    Text("--umask", "umask", "Permissions that are not shown, octal");
    Text("--fmask", "fmask", "The same of what is no directory");
    Text("--dmask", "dmask", "The same of directories");
    Text("--case", "case",
         "off: names match without regard to case; dir, force: as the host has it");
    Text("--symlinkroot", "symlinkroot", "Where absolute links of the host lead in the guest");
    Text("--translate-uid", "translate-uid", "KIND:FROM:TO:COUNT,... as virtiofsd has it");
    Text("--translate-gid", "translate-gid", "The same for groups");
  }

  void AddHostOptions() {
    constexpr char kGroup[] = "Host";
    fs_->add_option("--name", name_, "Name of the device in logs and statistics")->group(kGroup);
    fs_->add_option("--control-socket", control_socket_, "Socket for virtbay ctl")->group(kGroup);
    fs_->add_option("--log-level", log_level_, "trace, debug, info, warn, error or off")
        ->group(kGroup);
    fs_->add_flag("-d", debug_, "The same as --log-level=debug")->group(kGroup);
    fs_->add_flag("--syslog", syslog_, "Log to syslog(3) instead of stderr")->group(kGroup);
    fs_->add_option("--rlimit-nofile", rlimit_nofile_,
                    "Open files (default: what is allowed, at most 1000000; 0: leave as it is)")
        ->group(kGroup);
    fs_->add_option("--plugin-path", plugin_path_, "Directory with plugins")
        ->allow_extra_args(false)
        ->group(kGroup);
    fs_->add_option("--ready-fd", ready_fd_, "Gets a newline when front-ends can connect")
        ->group(kGroup);
    fs_->add_flag("--no-transfer-helper{false}", transfer_helper_,
                  "Copy large cached reads with one thread only")
        ->group(kGroup);
    fs_->add_flag("--no-packed-ring{false}", packed_ring_, "Offer split rings only")->group(kGroup);
    fs_->add_flag("--access-platform", access_platform_,
                  "Offer VIRTIO_F_ACCESS_PLATFORM (not for user-mode Linux)")
        ->group(kGroup);
    Key("--arena-size", "arena-size", "Private memory of the device (default 64M)", kGroup);
    Key("--arena-policy", "arena-policy", "private (default), or shared, to compare with", kGroup);
    Key("--poll-window", "poll-window", "Longest look for more work after work, or off", kGroup);
    Key("--poll-share", "poll-share", "Percent of a core that looking may cost", kGroup);
    Key("--swiotlb", "swiotlb", "0xBASE,SIZE: the guest's bounce pool for this device", kGroup);
    Key("--rings", "rings", "pool: refuse rings outside the pool; or anywhere (default)", kGroup);
    Key("--queue-size", "queue-size", "Largest ring (default 1024)", kGroup);

    Key("--stop-deadline", "stop-deadline", "Longest wait for requests in flight", kGroup);
    fs_->add_flag("--print-capabilities", print_capabilities_, "Print what libvirt asks and end")
        ->group(kGroup);
    fs_->set_version_flag("--version,-V", "virtbay " VIRTBAY_VERSION);
  }

  void AddIgnoredOptions() {
    constexpr char kGroup[] = "Taken for compatibility";
    fs_->add_option("-o", compat_, "KEY[=VALUE],... in the manner of the C virtiofsd")
        ->allow_extra_args(false)
        ->group(kGroup);
    fs_->add_option("--thread-pool-size", thread_pool_size_,
                    "No effect: io_uring and offload threads do what would block")
        ->group(kGroup);
    fs_->add_option("--inode-file-handles", inode_file_handles_,
                    "No effect: descriptors are opened when they are needed")
        ->check(CLI::IsMember({"never", "prefer", "mandatory"}))
        ->group(kGroup);
    fs_->add_option("--sandbox", sandbox_,
                    "No effect: the share is contained by checked names and openat2")
        ->check(CLI::IsMember({"namespace", "chroot", "none"}))
        ->group(kGroup);
    fs_->add_option("--seccomp", seccomp_, "No effect")
        ->check(CLI::IsMember({"none", "kill", "log", "trap"}))
        ->group(kGroup);
    fs_->add_flag("-f,--foreground", foreground_, "No effect: it never goes to the background")
        ->group(kGroup);
  }

  // An option of the plugin with a value; given again, the values are joined to a list.
  void Text(const char* name, const char* key, const char* help) {
    fs_->add_option_function<std::vector<std::string>>(
           name,
           [this, key](const std::vector<std::string>& values) {
             options_[key] = absl::StrJoin(values, ",");
           },
           help)
        ->allow_extra_args(false)
        ->group("Share");
  }

  // An option of the plugin that is true or false; untouched when not given.
  void Flag(const char* names, const char* key, const char* help) {
    fs_->add_flag_function(
           names, [this, key](std::int64_t count) { options_[key] = count > 0 ? "true" : "false"; },
           help)
        ->group("Share");
  }

  // A key of the device, checked as in a file.
  void Key(const char* name, const char* key, const char* help, const char* group) {
    fs_->add_option_function<std::string>(
           name,
           [this, name, key](const std::string& text) {
             KeyValue value(text);
             int64_t number = 0;
             if (absl::SimpleAtoi(text, &number)) value = number;
             const absl::Status set = SetDeviceKey(key, value, &keys_);
             if (!set.ok()) Usage(absl::StrCat(name, ": ", set.message()));
           },
           help)
        ->group(group);
  }

  void FillSocket(DeviceConfig* device) {
    if (!socket_path_.empty() && fd_.has_value()) {
      Usage("--fd: cannot be given together with --socket-path");
    }
    if (!socket_path_.empty()) {
      device->socket_path = socket_path_;
      device->socket_group = socket_group_;
    } else if (fd_.has_value()) {
      if (*fd_ < 0) Usage("--fd: must not be negative");
      device->socket_fd = *fd_;
    } else if (std::getenv("LISTEN_FDS") != nullptr) {
      device->socket_path = "systemd";
    } else {
      throw CLI::RequiredError("--socket-path or --fd");
    }
    if (!socket_group_.empty() && socket_path_.empty()) {
      Usage("--socket-group: needs --socket-path");
    }
  }

  void FillSpec(DeviceConfig* device) {
    device->spec.plugin = "virtiofs";
    device->spec.offer_access_platform = access_platform_;
    device->spec.offer_packed_ring = packed_ring_;
    device->spec.transfer_helper = transfer_helper_;
    const absl::Status named = SetDeviceKey("name", KeyValue(name_), device);
    if (!named.ok()) Usage(absl::StrCat("--name: ", named.message()));
    auto& options = device->spec.options;
    options = options_;
    if (!shared_dir_.empty()) options["shared-dir"] = shared_dir_;
    const auto text = [&options](const char* key, const std::string& value) {
      if (!value.empty()) options[key] = value;
    };
    text("tag", tag_);
    text("cache", cache_ == "none" ? "never" : cache_);
    text("attr-timeout", attr_timeout_);
    text("entry-timeout", entry_timeout_);
    text("negative-timeout", negative_timeout_);
    text("max-write", max_write_);
    if (request_queues_ > 0) options["request-queues"] = absl::StrCat(request_queues_);
    const absl::Status finished = FinishDevice(device);
    if (!finished.ok()) Usage(absl::StrCat("--", finished.message()));
    if (device->guest_pool != PoolUse::kNone) {
      Usage(
          "--swiotlb: a pool that the guest reports is for devices that are added after that: "
          "virtbay run and virtbay ctl add");
    }
  }

  void FillShares(DeviceConfig* device) {
    std::vector<DeviceConfig> shares;
    for (const std::string& text : shares_) {
      auto share = ShareDevice(text, "");
      if (!share.ok()) Usage(std::string(share.status().message()));
      shares.push_back(*std::move(share));
    }
    const absl::Status made = MakeAggregate(std::move(shares), device);
    if (!made.ok()) Usage(std::string(made.message()));
  }

  // The C virtiofsd's -o list. Explicit options win over it.
  void ApplyCompat(const std::string& list) {
    for (const absl::string_view item : absl::StrSplit(list, ',', absl::SkipEmpty())) {
      const std::pair<absl::string_view, absl::string_view> parts =
          absl::StrSplit(item, absl::MaxSplits('=', 1));
      const std::string key(parts.first);
      const std::string value(parts.second);
      if (key == "source") {
        if (shared_dir_.empty()) shared_dir_ = value;
      } else if (key == "cache") {
        if (cache_.empty()) cache_ = value;
      } else if (key == "timeout") {
        if (attr_timeout_.empty()) attr_timeout_ = value;
        if (entry_timeout_.empty()) entry_timeout_ = value;
      } else if (key == "log_level") {
        if (log_level_.empty()) log_level_ = value;
      } else if (key == "debug") {
        debug_ = true;
      } else if (!CompatFlag(key) && !CompatIgnored(key)) {
        Usage(absl::StrCat("-o ", key, ": unknown option"));
      }
    }
  }

  bool CompatFlag(const std::string& key) {
    static constexpr absl::string_view kFlags[] = {
        "xattr",       "writeback",          "posix_acl",  "allow_direct_io",
        "readdirplus", "announce_submounts", "killpriv_v2"};
    absl::string_view name = key;
    const bool on = !absl::ConsumePrefix(&name, "no_");
    for (const absl::string_view flag : kFlags) {
      if (name != flag) continue;
      options_.emplace(absl::StrReplaceAll(flag, {{"_", "-"}}), on ? "true" : "false");
      return true;
    }
    return false;
  }

  // Locks are always the host's; the sandbox options have no counterpart.
  static bool CompatIgnored(const std::string& key) {
    return key == "flock" || key == "no_flock" || key == "posix_lock" || key == "no_posix_lock" ||
           key == "sandbox";
  }

  CLI::App* const app_;
  CLI::App* fs_ = nullptr;
  std::vector<std::unique_ptr<ServeNet>> nets_;
  std::string socket_path_;
  std::optional<int> fd_;
  std::string socket_group_;
  std::string shared_dir_;
  std::vector<std::string> shares_;
  bool aggregate_ = false;
  std::string tag_;
  std::string cache_;
  std::string attr_timeout_;
  std::string entry_timeout_;
  std::string negative_timeout_;
  std::string max_write_;
  int request_queues_ = 0;
  std::string name_ = "virtiofs";
  std::string control_socket_;
  std::string log_level_;  // empty: not given
  bool debug_ = false;
  bool syslog_ = false;
  std::optional<uint64_t> rlimit_nofile_;
  int ready_fd_ = -1;
  std::vector<std::string> plugin_path_;
  bool access_platform_ = false;
  bool packed_ring_ = true;
  bool transfer_helper_ = true;
  bool print_capabilities_ = false;
  std::vector<std::string> compat_;
  uint32_t thread_pool_size_ = 0;
  std::string inode_file_handles_;
  std::string sandbox_;
  std::string seccomp_;
  bool foreground_ = false;
  std::map<std::string, std::string> options_;
  std::set<std::string> given_;  // by --option
  DeviceConfig keys_;
};

}  // namespace

std::unique_ptr<Command> AddServeCommand(CLI::App* app) {
  return std::make_unique<ServeCommand>(app);
}

}  // namespace virtbay::device_host
