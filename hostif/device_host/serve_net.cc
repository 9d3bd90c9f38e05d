#include "hostif/device_host/serve_net.h"

#include <array>
#include <utility>

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

}  // namespace

std::span<const NetType> NetTypes() { return kTypes; }

ServeNet::ServeNet(CLI::App* serve, const NetType& type)
    : type_(type), app_(serve->add_subcommand(type.name, type.help)), common_(app_, type.name) {
  common_.AddSocket();
  for (const NetOption& option : type_.options) {
    if (option.word != nullptr) {
      common_.Ordered(option.flag, option.key, option.word, option.help, "Back-end");
    } else {
      common_.Text(option.flag, option.key, option.help, "Back-end");
    }
  }
  for (const NetOption& option : kNetOptions) {
    common_.Text(option.flag, option.key, option.help, "Interface");
  }
  common_.AddOption("Interface");
  common_.AddHost();
  common_.Key("--dma", "dma", "bounce (default) or direct");
  app_->add_flag("--check", check_, "Make the device and end, without a socket")->group("Host");
}

absl::Status ServeNet::Run() {
  DeviceConfig device = common_.Device();
  device.spec.options = common_.options();
  ServeOptions::Finish(&device);
  ServiceConfig config = common_.Service(std::move(device), "info");
  return common_.Outcome(check_ ? CheckService(config) : RunService(std::move(config)));
}

}  // namespace virtbay::device_host
