// The proxy-net device (virtio 1.3 5.1): a guest's network that ends in user space.
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "plugins/proxy-net/flow/forward.h"
#include "plugins/proxy-net/flow_options.h"
#include "plugins/proxy-net/gateway.h"
#include "plugins/proxy-net/lan/uplink_watcher.h"
#include "plugins/proxy-net/options.h"
#include "plugins/proxy-net/pair.h"
#include "plugins/proxy-net/policy/policy_store.h"
#include "plugins/proxy-net/policy/saved_rules.h"
#include "virtbay/sdk/net_device.h"
#include "virtbay/sdk/plugin.h"

namespace virtbay::proxy_net {
namespace {

using sdk::NetConfig;
using sdk::NetDevice;
using sdk::Status;
using sdk::TxFrame;

// The parts' own, but for those that every network device has.
constexpr auto kOwnOptions = [] {
  std::array<virtbay_option, kOptionList.size() + kFlowOptionList.size()> all{};
  std::copy(kOptionList.begin(), kOptionList.end(), all.begin());
  std::copy(kFlowOptionList.begin(), kFlowOptionList.end(), all.begin() + kOptionList.size());
  return all;
}();
constexpr auto kAllOptions = sdk::NetOptions(kOwnOptions);

constexpr size_t kShownFlows = 10'000;

class ProxyNet final : public NetDevice {
 public:
  static constexpr auto& kOptions = kAllOptions;

  ~ProxyNet() override = default;

  // ---- NetDevice ------------------------------------------------------------------------------

  Status Configure(NetConfig* config) override {
    if (Status read = ReadOptions(config); !read.ok()) return read;
    shared_ =
        std::make_unique<SharedFlows>(flow_options_.limits, config->queue_pairs, SipKey::Random());
    gateway_ = std::make_unique<Gateway>(this, &options_, &mac_);
    store_.Change([&](Policy* policy) {
      policy->SetRules(options_.rules);
      policy->SetHostAlias(options_.host);
      if (options_.deny_host_addresses) {
        policy->SetDeniedHostAddresses(UplinkWatcher::HostAddresses());
      }
    });
    for (size_t i = 0; i < kEvents; ++i) {
      counters_.Bind(static_cast<Event>(i),
                     host().Counter(kEventNames[i].name, kEventNames[i].help));
    }
    pairs_.device = this;
    pairs_.gateway = gateway_.get();
    pairs_.store = &store_;
    pairs_.shared = shared_.get();
    pairs_.gateway_mac = options_.lan.gateway_mac;
    pairs_.mac = &mac_;
    pairs_.moved =
        host().Counter("flows_moved", "buckets of flows that went to another queue pair");
    for (uint32_t i = 0; i < config->queue_pairs; ++i) {
      pairs_.all.push_back(std::make_unique<Pair>(&pairs_, i, config->queue_pairs, &counters_));
      Pair& pair = *pairs_.all.back();
      store_.Refresh(pair.policy());
      if (!pair.ok()) {
        return sdk::Error{VIRTBAY_RESOURCE_EXHAUSTED, 0,
                          "proxy-net: no descriptor or no address space for its flows"};
      }
      if (!pair.Open()) return sdk::Errno(errno, "proxy-net: epoll");
    }
    Status opened =
        gateway_->Open(options_.dns, &first().shard(), [this] { OnHostAddressesChanged(); });
    if (!opened.ok()) return opened;
    // With a state come those that there were, and their sockets.
    if (restores()) return {};
    for (Forward& forward : flow_options_.forwards) {
      const Status added = AddForward(&forward);
      if (!added.ok()) {
        return sdk::Error{added.error().code, added.error().sys_errno,
                          absl::StrCat("option forward: ", added.error().text)};
      }
    }
    return {};
  }

  void OnDeactivate() override {
    for (const auto& pair : pairs_.all) pair->Run([&pair] { pair->DropAll(); });
  }

  Status OnSave(sdk::StateWriter* state) override {
    std::vector<Shard*> shards;
    const Status settled = OnEvery([&](Pair& pair) {
      pair.Settle();
      shards.push_back(&pair.shard());
    });
    if (!settled.ok()) return settled;
    const SavedFlows flows = SaveFlows(shards);
    for (const int fd : flows.fds) state->AddFd(kFlowRole, fd);
    state->Add(kFlowSection, flows.bytes.data(), flows.bytes.size());
    std::string forwards;
    for (const Forward& forward : forwards_) {
      absl::StrAppend(&forwards, forward.number, " ", forward.ToString(), "\n");
    }
    state->Add(kForwardSection, forwards.data(), forwards.size());
    const SavedRules rules{options_.rules, store_.Get().rules()};
    if (rules.in_force != rules.of_option) {
      const std::string text = rules.ToString();
      state->Add(kRuleSection, text.data(), text.size());
    }
    gateway_->Save(state);
    return {};
  }

  Status OnRestore(sdk::StateReader* state) override {
    const auto flows = state->Find(kFlowSection);
    const auto forwards = state->Find(kForwardSection);
    if (!flows.has_value() || !forwards.has_value()) {
      return sdk::InvalidArgument("the state is none of proxy-net");
    }
    if (Status status = gateway_->Restore(state); !status.ok()) return status;
    const absl::string_view lines(reinterpret_cast<const char*>(forwards->data()),
                                  forwards->size());
    for (const absl::string_view line : absl::StrSplit(lines, '\n', absl::SkipEmpty())) {
      const std::pair<absl::string_view, absl::string_view> parts =
          absl::StrSplit(line, absl::MaxSplits(' ', 1));
      sdk::Result<Forward> forward = Forward::Parse(std::string(parts.second));
      if (!forward.ok()) return forward.error();
      if (!absl::SimpleAtoi(parts.first, &forward->number)) {
        return sdk::InvalidArgument("a forward of the state has no number");
      }
      last_forward_ = std::max(last_forward_, forward->number);
      forwards_.push_back(*forward);
    }
    sdk::Result<std::vector<Rule>> rules = RulesAfter(*state);
    if (!rules.ok()) return rules.error();
    const std::vector<int> fds = state->TakeFds(kFlowRole);
    const auto restored = RestoreFlows(
        &first().shard(), {reinterpret_cast<const uint8_t*>(flows->data()), flows->size()}, fds);
    if (!restored.ok()) return restored.error();
    host().Log(VIRTBAY_LOG_INFO, "goes on with %u flows and sockets; %u found no room",
               restored.value().flows, restored.value().dropped);
    // Those of the option as well, which may be another one now: a flow that they forbid ends
    // before it is served.
    return ApplyRules(std::move(*rules));
  }

  void OnRelease() override {
    static_cast<void>(OnEvery([](Pair& pair) { pair.shard().Forget(); }));
  }

  void OnMac(const sdk::MacAddress& mac) override {
    mac_.store(NumberOf(MacAddress{mac}), std::memory_order_relaxed);
  }
  Status OnPairs(uint32_t count) override {
    // Fewer are used by the control queue only, which is the first pair's.
    for (uint32_t i = std::max(count, 1u); i < pairs_.all.size(); ++i) pairs_.all[i]->AskToLeave(0);
    return {};
  }

  void OnPairStart(uint32_t pair) override { pairs_.all[pair]->OnStart(); }
  void OnPairStop(uint32_t pair) override { pairs_.all[pair]->OnStop(); }
  void OnFarewell(uint32_t pair, uint32_t /*reason*/) override { pairs_.all[pair]->OnFarewell(); }
  void OnFrames(uint32_t pair, std::span<TxFrame> frames) override {
    pairs_.all[pair]->OnFrames(frames);
  }
  void OnRxBuffers(uint32_t pair) override { pairs_.all[pair]->OnRxBuffers(); }
  void OnReady(uint32_t pair, int32_t /*events*/) override { pairs_.all[pair]->OnReady(); }
  void OnAlarm(uint32_t pair, uint64_t cookie) override { pairs_.all[pair]->OnAlarm(cookie); }

  sdk::Result<std::string> OnControl(std::string_view command, std::string_view text) override {
    if (command == "forward-add") return ForwardAdd(text);
    if (command == "forward-remove") return ForwardRemove(text);
    if (command == "forward-list") return ForwardList();
    if (command == "rule-add") return RuleAdd(text);
    if (command == "rule-remove") return RuleRemove(text);
    if (command == "rule-list") return RuleList();
    if (command == "flows") return Flows();
    return sdk::Error{VIRTBAY_UNIMPLEMENTED, 0,
                      "there is no such command, only link, announce, show, flows, forward-add, "
                      "forward-remove, forward-list, rule-add, rule-remove and rule-list"};
  }

  std::string OnShow() override {
    Shard::Totals t;
    const Status counted = OnEvery([&](Pair& pair) {
      const Shard::Totals some = pair.shard().totals();
      t.tcp += some.tcp;
      t.datagram += some.datagram;
      t.half_open += some.half_open;
      t.time_wait += some.time_wait;
      t.listeners += some.listeners;
      t.spill_chunks += some.spill_chunks;
    });
    std::string text;
    const Status done = OnFirst([&] {
      text = absl::StrCat("\"guest_address\": \"", gateway_->GuestAddress(false)->ToString(),
                          "\", \"gateway\": \"", gateway_->Address(false).ToString(),
                          "\", \"ipv6\": ", gateway_->ipv6_up() ? "true" : "false",
                          ", \"tcp_flows\": ", t.tcp, ", \"datagram_flows\": ", t.datagram,
                          ", \"half_open\": ", t.half_open, ", \"time_wait\": ", t.time_wait,
                          ", \"listeners\": ", t.listeners,
                          ", \"buffered_bytes\": ", uint64_t{t.spill_chunks} * ChunkPool::kSize,
                          ", \"dns_in_flight\": ", gateway_->dns_in_flight());
    });
    return counted.ok() && done.ok() ? text : std::string();
  }

 private:
  // Beside those of the gateway.
  static constexpr uint32_t kFlowSection = 16;
  static constexpr uint32_t kForwardSection = 17;
  static constexpr uint32_t kRuleSection = 18;  // only where rules were changed at run time
  static constexpr uint32_t kFlowRole = 1;

  Pair& first() { return *pairs_.all[0]; }

  // [queue, of the first pair]
  void OnHostAddressesChanged() {
    store_.Change(
        [](Policy* policy) { policy->SetDeniedHostAddresses(UplinkWatcher::HostAddresses()); });
    first().RefreshRules();
    first().TellRules();
  }

  Status ReadOptions(NetConfig* config) {
    const auto is_in = [](const auto& list, std::string_view key) {
      return std::any_of(list.begin(), list.end(),
                         [&](const virtbay_option& option) { return key == option.name; });
    };
    std::vector<Options::KeyValue> link;
    for (uint32_t i = 0; const char* name = host().OptionName(i); ++i) {
      const std::string_view key(name);
      const std::string value = host().Option(name).value_or("");
      bool known = false;
      if (Status status = flow_options_.Parse(key, value, &known); !status.ok()) return status;
      // Every network device's are its own business, but for the two that the link has to know.
      if (known || (is_in(sdk::kNetOptions, key) && key != "mac" && key != "mtu")) continue;
      link.emplace_back(key, value);
    }
    sdk::Result<Options> options = Options::Parse(link);
    if (!options.ok()) return options.error();
    options_ = std::move(options.value());
    if (!options_.lan.guest_mac.has_value()) {
      const uint64_t random = SipKey::Random().k0;
      options_.lan.guest_mac =
          MacAddress{{0x52, 0x54, 0x00, static_cast<uint8_t>(random),
                      static_cast<uint8_t>(random >> 8), static_cast<uint8_t>(random >> 16)}};
    }
    options_.lan.seed = SipKey::Random().k0;
    mac_.store(NumberOf(*options_.lan.guest_mac), std::memory_order_relaxed);
    config->mac = options_.lan.guest_mac->bytes;
    config->mtu = options_.lan.mtu;
    return {};
  }

  // ---- commands [control] ---------------------------------------------------------------------

  // When they fail, `work` will not be done any more: it may refer to what is the caller's.
  template <typename F>
  Status OnQueueOf(Pair& pair, F&& work) {
    if (pair.Run(work)) return {};
    return sdk::Error{VIRTBAY_DEADLINE_EXCEEDED, 0, "the device's thread did not answer"};
  }
  template <typename F>
  Status OnFirst(F&& work) {
    return OnQueueOf(first(), work);
  }
  // One after the other.
  template <typename F>
  Status OnEvery(F&& work) {
    for (const auto& pair : pairs_.all) {
      const Status done = OnQueueOf(*pair, [&] { work(*pair); });
      if (!done.ok()) return done;
    }
    return {};
  }

  Status AddForward(Forward* forward) {
    forward->number = ++last_forward_;
    sdk::Result<BoundForward> bound = Bind(forward, &first());
    if (!bound.ok()) return bound.error();
    BoundForward& sockets = bound.value();
    bool all = true;
    const Status done = OnFirst([&] {
      for (size_t i = 0; i < sockets.fds.size(); ++i) {
        all = first().shard().AddListener(sockets.specs[i], sockets.fds[i]) && all;
      }
      if (!all) first().shard().RemoveListener(sockets.specs[0].forward);
    });
    if (!done.ok()) {
      Unbind(&sockets, &first());
      return done;
    }
    if (!all) {
      return sdk::Error{VIRTBAY_RESOURCE_EXHAUSTED, 0,
                        absl::StrCat("forward ", forward->ToString(), ": too many ports")};
    }
    forwards_.push_back(*forward);
    host().Log(VIRTBAY_LOG_INFO, "forward %s", forward->ToString().c_str());
    return {};
  }

  sdk::Result<std::string> ForwardAdd(std::string_view text) {
    sdk::Result<Forward> forward = Forward::Parse(text);
    if (!forward.ok()) return forward.error();
    const Status added = AddForward(&forward.value());
    if (!added.ok()) return added.error();
    return forward.value().ToString();
  }

  sdk::Result<std::string> ForwardRemove(std::string_view text) {
    sdk::Result<Forward> given = Forward::Parse(text);
    if (!given.ok()) return given.error();
    const std::string name = given.value().ToString();
    const auto at = std::find_if(forwards_.begin(), forwards_.end(),
                                 [&](const Forward& f) { return f.ToString() == name; });
    if (at == forwards_.end()) {
      return sdk::Error{VIRTBAY_NOT_FOUND, 0, absl::StrCat("no forward ", name)};
    }
    const Status done =
        OnFirst([this, number = at->number] { first().shard().RemoveListener(number); });
    if (!done.ok()) return done.error();
    forwards_.erase(at);
    return name;
  }

  sdk::Result<std::string> ForwardList() {
    std::string text;
    for (const Forward& forward : forwards_) absl::StrAppend(&text, forward.ToString(), "\n");
    return text;
  }

  // Flows that the new rules forbid end before the command does.
  Status ApplyRules(std::vector<Rule> rules) {
    store_.Change([&](Policy* policy) { policy->SetRules(std::move(rules)); });
    return OnEvery([](Pair& pair) { pair.RefreshRules(); });
  }

  // Those that hold after a restore: those that were in force, unless the option is not any more
  // what they were changed from. Where among its rules theirs belong cannot be told then.
  sdk::Result<std::vector<Rule>> RulesAfter(const sdk::StateReader& state) {
    const auto section = state.Find(kRuleSection);
    // Nothing was changed at run time, or the state is an older one.
    if (!section.has_value()) return options_.rules;
    sdk::Result<SavedRules> saved =
        SavedRules::Parse({reinterpret_cast<const char*>(section->data()), section->size()});
    if (!saved.ok()) return saved.error();
    if (saved->of_option == options_.rules) return std::move(saved->in_force);
    if (saved->in_force != options_.rules) {
      const SavedRules::Changes dropped = saved->AtRunTime();
      host().Log(VIRTBAY_LOG_WARN,
                 "option rules: has changed since the state was saved, and holds alone: %zu rules "
                 "added and %zu removals made at run time are dropped",
                 dropped.added, dropped.removed);
    }
    return options_.rules;
  }

  // "RULE", at the end, or "N RULE", as the N-th of them, from 1.
  sdk::Result<std::string> RuleAdd(std::string_view text) {
    std::vector<Rule> rules = store_.Get().rules();
    size_t at = rules.size();
    if (!text.empty() && text[0] >= '0' && text[0] <= '9') {
      const size_t space = text.find(' ');
      const std::string number(text.substr(0, space));
      uint32_t place = 0;
      if (!absl::SimpleAtoi(number, &place) || space == std::string_view::npos || place < 1 ||
          place > rules.size() + 1) {
        return sdk::InvalidArgument(
            absl::StrCat("'", number, "' is no place in a list of ", rules.size()));
      }
      at = place - 1;
      text = text.substr(space + 1);
    }
    sdk::Result<Rule> rule = Rule::Parse(text);
    if (!rule.ok()) return rule.error();
    if (rules.size() >= Policy::kMaxRules) {
      return sdk::Error{VIRTBAY_RESOURCE_EXHAUSTED, 0, "there are too many rules"};
    }
    const Rule added = rule.value();
    rules.insert(rules.begin() + static_cast<std::ptrdiff_t>(at), added);
    const Status done = ApplyRules(std::move(rules));
    if (!done.ok()) return done.error();
    return added.ToString();
  }

  sdk::Result<std::string> RuleRemove(std::string_view text) {
    sdk::Result<Rule> rule = Rule::Parse(text);
    if (!rule.ok()) return rule.error();
    std::vector<Rule> rules = store_.Get().rules();
    const auto at = std::find(rules.begin(), rules.end(), rule.value());
    if (at == rules.end()) {
      return sdk::Error{VIRTBAY_NOT_FOUND, 0,
                        absl::StrCat("no rule '", rule.value().ToString(), "'")};
    }
    rules.erase(at);
    const Status done = ApplyRules(std::move(rules));
    if (!done.ok()) return done.error();
    return rule.value().ToString();
  }

  sdk::Result<std::string> RuleList() {
    std::string text;
    const Policy policy = store_.Get();
    for (const Rule& rule : policy.rules()) absl::StrAppend(&text, rule.ToString(), "\n");
    return text;
  }

  sdk::Result<std::string> Flows() {
    std::string text;
    size_t shown = 0;
    const Status done = OnEvery([&](Pair& pair) {
      std::string some = pair.shard().Describe(static_cast<uint32_t>(kShownFlows - shown));
      shown += static_cast<size_t>(std::count(some.begin(), some.end(), '\n'));
      if (pairs_.all.size() > 1) {
        absl::StrReplaceAll({{"\n", absl::StrCat(" pair=", pair.index(), "\n")}}, &some);
      }
      text += some;
    });
    if (!done.ok()) return done.error();
    return text;
  }

  Options options_;
  FlowOptions flow_options_;
  EventCounters counters_;
  PolicyStore store_;
  std::atomic<uint64_t> mac_{0};  // the guest's, as it was last heard
  std::unique_ptr<SharedFlows> shared_;
  std::unique_ptr<Gateway> gateway_;
  Pairs pairs_;
  std::vector<Forward> forwards_;
  uint32_t last_forward_ = 0;
};

}  // namespace
}  // namespace virtbay::proxy_net

VIRTBAY_PLUGIN(virtbay::proxy_net::ProxyNet, "proxy-net", virtbay::sdk::kVirtioNetId,
               VIRTBAY_DEVICE_QUEUE_PARALLEL);
