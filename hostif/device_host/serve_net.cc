#include "hostif/device_host/serve_net.h"

#include <array>
#include <cstdlib>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "framework/base/status.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/device_host/run_service.h"

namespace virtbay::device_host {
namespace {

// Of every network device.
constexpr std::array kNetOptions = {
    NetOption{"--mac", "mac", "Address of the interface (default: one is made up)"},
    NetOption{"--mtu", "mtu", "Bytes of a packet, 68 to 65535"},
    NetOption{"--queue-pairs", "queue-pairs", "Receive and transmit queues, 1 to 16 (default 1)"},
    NetOption{"--link", "link", "up (default) or down, at the start"},
    NetOption{"--offloads", "offloads", "false: no checksum and segmentation offloads"},
    NetOption{"--mergeable", "mergeable", "false: every frame in one buffer"},
    NetOption{"--pcap", "pcap", "Capture every frame to this file (pcapng)"},
    NetOption{"--pcap-snaplen", "pcap-snaplen", "Bytes of a frame to capture"},
};

constexpr std::array kVirtioNetOptions = {
    NetOption{"--tap", "tap", "Name of the TAP interface"},
    NetOption{"--tap-fd", "tap-fd", "Inherited TAP descriptor; several, with commas: a pair each"},
    NetOption{"--backend", "backend", "tap (default), null: drop all, or loop: send all back"},
    NetOption{"--tx-rate", "tx-rate", "Bytes per second from the guest, such as 10M"},
    NetOption{"--tx-burst", "tx-burst", "Bytes that may come at once"},
    NetOption{"--rx-rate", "rx-rate", "Bytes per second to the guest"},
    NetOption{"--rx-burst", "rx-burst", "Bytes that may come at once"},
};

constexpr std::array kProxyNetOptions = {
    NetOption{"--forward", "forward",
              "tcp|udp:[ADDRESS:]PORTS:PORTS: a port of the host's to one of the guest's"},
    NetOption{"--allow", "rules", "TARGET[:PORTS][/PROTOCOL]: a destination; the first rule counts",
              "allow"},
    NetOption{"--deny", "rules", "The same in reverse", "deny"},
    NetOption{"--host-ports", "host-ports", "Ports of the host's own that the guest may reach"},
    NetOption{"--deny-host-addresses", "deny-host-addresses", "true: not the host's addresses"},
    NetOption{"--dns", "dns", "Resolvers to ask instead of the host's"},
    NetOption{"--dns-records", "dns-records", "NAME=ADDRESS or NAME=NAME, known without asking"},
    NetOption{"--search", "search", "Search list of the guest"},
    NetOption{"--domain", "domain", "Domain of the guest"},
    NetOption{"--hostname", "hostname", "Name of the guest"},
    NetOption{"--subnet", "subnet", "Network of the guest (default 10.0.2.0/24)"},
    NetOption{"--gateway", "gateway", "Address of the gateway"},
    NetOption{"--guest-address", "guest-address", "Address of the guest"},
    NetOption{"--guest-dns", "guest-dns",
              "Resolvers that the guest is told instead of the gateway"},
    NetOption{"--ipv6", "ipv6", "auto (default): while the host has it; on or off"},
    NetOption{"--prefix6", "prefix6", "IPv6 prefix of the guest, 64 bits"},
    NetOption{"--gateway-mac", "gateway-mac", "Address of the gateway's interface"},
    NetOption{"--max-tcp-flows", "max-tcp-flows", "Connections at once (default 16384)"},
    NetOption{"--max-udp-flows", "max-udp-flows", "UDP and echo flows at once (default 8192)"},
    NetOption{"--max-half-open", "max-half-open", "Connections being made at once (default 1024)"},
    NetOption{"--max-new-flows", "max-new-flows", "New flows in a second (default 50000)"},
    NetOption{"--max-buffer-mib", "max-buffer-mib",
              "Memory for what sockets do not take (default 256)"},
    NetOption{"--tcp-idle", "tcp-idle", "Seconds until a silent guest is asked (default 7200)"},
    NetOption{"--udp-idle", "udp-idle", "Seconds until a silent flow ends (default 300)"},
};

constexpr std::array kTypes = {
    NetType{"virtio-net", "A network interface over TAP", kVirtioNetOptions},
    NetType{"proxy-net", "A network without privilege, over sockets", kProxyNetOptions},
};

[[noreturn]] void Usage(const std::string& message) {
  throw CLI::ValidationError(message, CLI::ExitCodes::ValidationError);
}

}  // namespace

std::span<const NetType> NetTypes() { return kTypes; }

ServeNet::ServeNet(CLI::App* serve, const NetType& type)
    : type_(type), app_(serve->add_subcommand(type.name, type.help)), name_(type.name) {
  AddSocketOptions();
  AddNetOptions();
  AddHostOptions();
}

void ServeNet::AddSocketOptions() {
  constexpr char kGroup[] = "Socket";
  app_->add_option("--socket-path", socket_path_, "Socket to listen on")->group(kGroup);
  app_->add_option("--fd", fd_, "Inherited listening socket (or socket activation, with neither)")
      ->group(kGroup);
  app_->add_option("--socket-group", socket_group_, "Group that may connect")->group(kGroup);
}

void ServeNet::AddNetOptions() {
  for (const NetOption& option : type_.options) {
    if (option.word != nullptr) {
      Ordered(option, "Back-end");
    } else {
      Text(option.flag, option.key, option.help, "Back-end");
    }
  }
  for (const NetOption& option : kNetOptions) {
    Text(option.flag, option.key, option.help, "Interface");
  }
  app_->add_option_function<std::vector<std::string>>(
          "--option",
          [this](const std::vector<std::string>& texts) {
            for (const std::string& text : texts) {
              const size_t equals = text.find('=');
              if (equals == 0 || equals == std::string::npos) {
                Usage(absl::StrCat("--option: '", text, "' is not KEY=VALUE"));
              }
              options_[text.substr(0, equals)] = text.substr(equals + 1);
            }
          },
          "KEY=VALUE: any option of the plugin, see docs/usage.md")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)
      ->group("Interface");
}

void ServeNet::AddHostOptions() {
  constexpr char kGroup[] = "Host";
  app_->add_option("--name", name_, "Name of the device in logs and statistics")->group(kGroup);
  app_->add_option("--control-socket", control_socket_, "Socket for virtbay ctl")->group(kGroup);
  app_->add_option("--log-level", log_level_, "trace, debug, info, warn, error or off")
      ->group(kGroup);
  app_->add_flag("--syslog", syslog_, "Log to syslog(3) instead of stderr")->group(kGroup);
  app_->add_option("--rlimit-nofile", rlimit_nofile_,
                   "Open files (default: what is allowed, at most 1000000; 0: leave as it is)")
      ->group(kGroup);
  app_->add_option("--plugin-path", plugin_path_, "Directory with plugins")
      ->allow_extra_args(false)
      ->group(kGroup);
  app_->add_option("--ready-fd", ready_fd_, "Gets a newline when front-ends can connect")
      ->group(kGroup);
  app_->add_flag("--access-platform", access_platform_,
                 "Offer VIRTIO_F_ACCESS_PLATFORM (not for user-mode Linux)")
      ->group(kGroup);
  app_->add_flag("--check", check_, "Make the device and end, without a socket")->group(kGroup);
  Key("--arena-size", "arena-size", "Private memory of the device (default 64M)");
  Key("--poll-window", "poll-window", "Longest look for more work after work, or off");
  Key("--poll-share", "poll-share", "Percent of a core that looking may cost");
  Key("--dma", "dma", "bounce (default) or direct");
  Key("--swiotlb", "swiotlb", "0xBASE,SIZE: the guest's bounce pool for this device; or pool");
  Key("--rings", "rings", "pool: refuse rings outside the pool; or anywhere (default)");
  Key("--queue-size", "queue-size", "Largest ring (default 1024)");
  Key("--stop-deadline", "stop-deadline", "Longest wait for requests in flight");
  app_->set_version_flag("--version,-V", "virtbay " VIRTBAY_VERSION);
}

void ServeNet::Text(const char* flag, const char* key, const char* help, const char* group) {
  app_->add_option_function<std::vector<std::string>>(
          flag,
          [this, key](const std::vector<std::string>& values) {
            options_[key] = absl::StrJoin(values, ",");
          },
          help)
      ->allow_extra_args(false)
      ->group(group);
}

void ServeNet::Ordered(const NetOption& option, const char* group) {
  app_->add_option_function<std::string>(
          option.flag,
          [this, &option](const std::string& text) {
            std::string& list = options_[option.key];
            absl::StrAppend(&list, list.empty() ? "" : ",", option.word, " ", text);
          },
          option.help)
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw)
      ->trigger_on_parse()
      ->group(group);
}

void ServeNet::Key(const char* name, const char* key, const char* help) {
  app_->add_option_function<std::string>(
          name,
          [this, name, key](const std::string& text) {
            KeyValue value(text);
            int64_t number = 0;
            if (absl::SimpleAtoi(text, &number)) value = number;
            const absl::Status set = SetDeviceKey(key, value, &keys_);
            if (!set.ok()) Usage(absl::StrCat(name, ": ", set.message()));
          },
          help)
      ->group("Host");
}

void ServeNet::FillSocket(DeviceConfig* device) {
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

absl::Status ServeNet::Run() {
  ServiceConfig config;
  DeviceConfig device = keys_;
  FillSocket(&device);
  device.spec.plugin = type_.name;
  device.spec.offer_access_platform = access_platform_;
  const absl::Status named = SetDeviceKey("name", KeyValue(name_), &device);
  if (!named.ok()) Usage(absl::StrCat("--name: ", named.message()));
  device.spec.options = options_;
  const absl::Status finished = FinishDevice(&device);
  if (!finished.ok()) Usage(absl::StrCat("--", finished.message()));
  config.control_socket = control_socket_;
  config.ready_fd = ready_fd_;
  config.rlimit_nofile = rlimit_nofile_;
  for (const std::string& dir : plugin_path_) config.plugin_dirs.emplace_back(dir);
  const auto level = ParseLogLevel(log_level_.empty() ? "info" : log_level_);
  if (!level.ok()) Usage(absl::StrCat("--log-level: ", level.status().message()));
  config.log_level = *level;
  config.syslog = syslog_;
  config.devices.push_back(std::move(device));
  return check_ ? CheckService(config) : RunService(std::move(config));
}

}  // namespace virtbay::device_host
