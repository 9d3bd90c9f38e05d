// `virtbay serve`: a share (virtiofs), with virtiofsd's option names where the meaning is the same,
// a network device (serve_net.h), or a device of any plugin (serve_plugin.h).
#include <cstdint>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "hostif/device_host/aggregate_device.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/run_service.h"
#include "hostif/device_host/serve_net.h"
#include "hostif/device_host/serve_options.h"
#include "hostif/device_host/serve_plugin.h"
#include "hostif/device_host/wsl_service.h"

namespace virtbay::device_host {
namespace {

// What libvirt reads to learn which command line a virtiofsd has.
constexpr char kCapabilities[] =
    "{\n  \"type\": \"fs\",\n  \"features\": [\n    "
    "\"separate-options\"\n  ]\n}\n";

class ServeCommand final : public Command {
 public:
  explicit ServeCommand(CLI::App* app)
      : app_(app->add_subcommand("serve", "Serve one device on a socket")) {
    app_->require_subcommand(0, 1);
    fs_ = app_->add_subcommand("virtiofs", "Share a directory; takes virtiofsd's options");
    common_.emplace(fs_, "virtiofs");
    common_->AddSocket();
    AddShareOptions();
    AddHostOptions();
    AddIgnoredOptions();
    for (const NetType& type : NetTypes()) nets_.push_back(std::make_unique<ServeNet>(app_, type));
    plugin_.emplace(app_);
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run() override {
    for (const std::unique_ptr<ServeNet>& net : nets_) {
      if (net->parsed()) return net->Run();
    }
    if (plugin_->parsed()) return plugin_->Run();
    if (!fs_->parsed()) throw CLI::RequiredError("A subcommand");
    if (print_capabilities_) {
      std::cout << kCapabilities;
      return absl::OkStatus();
    }
    for (const std::string& list : compat_) ApplyCompat(list);
    const bool many = aggregate_ || !shares_.empty();
    if (many && !shared_dir_.empty()) {
      Usage(absl::StrCat("--shared-dir: cannot be given together with ",
                         shares_.empty() ? "--aggregate" : "--share"));
    }
    if (!many && shared_dir_.empty()) throw CLI::RequiredError("--shared-dir");
    DeviceConfig device = common_->Device();
    FillSpec(&device);
    if (many) FillShares(&device);
    // The C virtiofsd's word.
    if (common_->log_level() == "err") common_->log_level() = "error";
    return common_->Outcome(
        RunService(common_->Service(std::move(device), debug_ ? "debug" : "info")));
  }

 private:
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
    common_->AddOption(kGroup);
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
    common_->AddHost();
    fs_->add_flag("-d", debug_, "The same as --log-level=debug")->group(kGroup);
    fs_->add_flag("--no-transfer-helper{false}", transfer_helper_,
                  "Copy large cached reads with one thread only")
        ->group(kGroup);
    fs_->add_flag("--no-packed-ring{false}", packed_ring_, "Offer split rings only")->group(kGroup);
    common_->Key("--arena-policy", "arena-policy", "private (default), or shared, to compare with");
    fs_->add_flag("--print-capabilities", print_capabilities_, "Print what libvirt asks and end")
        ->group(kGroup);
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

  void Text(const char* name, const char* key, const char* help) {
    common_->Text(name, key, help, "Share");
  }

  // An option of the plugin that is true or false; untouched when not given.
  void Flag(const char* names, const char* key, const char* help) {
    fs_->add_flag_function(
           names,
           [this, key](std::int64_t count) {
             common_->options()[key] = count > 0 ? "true" : "false";
           },
           help)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->group("Share");
  }

  void FillSpec(DeviceConfig* device) {
    device->spec.offer_packed_ring = packed_ring_;
    device->spec.transfer_helper = transfer_helper_;
    auto& options = device->spec.options;
    options = common_->options();
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
    ServeOptions::Finish(device);
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
      const bool takes =
          key == "source" || key == "cache" || key == "timeout" || key == "log_level";
      if (takes && value.empty()) Usage(absl::StrCat("-o ", key, ": is empty"));
      if (key == "source") {
        if (shared_dir_.empty()) shared_dir_ = value;
      } else if (key == "cache") {
        if (cache_.empty()) cache_ = value;
      } else if (key == "timeout") {
        if (attr_timeout_.empty()) attr_timeout_ = value;
        if (entry_timeout_.empty()) entry_timeout_ = value;
      } else if (key == "log_level") {
        if (common_->log_level().empty()) common_->log_level() = value;
      } else if (key == "debug") {
        debug_ = true;
      } else if (!CompatFlag(key) && !CompatIgnored(key)) {
        Usage(absl::StrCat("-o ", key, ": unknown option"));
      } else if (item.size() > key.size() && key != "sandbox") {
        Usage(absl::StrCat("-o ", key, ": takes no value"));
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
      common_->options().emplace(absl::StrReplaceAll(flag, {{"_", "-"}}), on ? "true" : "false");
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
  std::optional<ServeOptions> common_;
  std::vector<std::unique_ptr<ServeNet>> nets_;
  std::optional<ServePlugin> plugin_;
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
  bool debug_ = false;
  bool packed_ring_ = true;
  bool transfer_helper_ = true;
  bool print_capabilities_ = false;
  std::vector<std::string> compat_;
  uint32_t thread_pool_size_ = 0;
  std::string inode_file_handles_;
  std::string sandbox_;
  std::string seccomp_;
  bool foreground_ = false;
};

}  // namespace

std::unique_ptr<Command> AddServeCommand(CLI::App* app) {
  return std::make_unique<ServeCommand>(app);
}

}  // namespace virtbay::device_host
