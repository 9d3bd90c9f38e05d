// abi_bench: what it costs to cross the plugin ABI. The null device's answers, given to a host that
// only counts them: by the plugin, a shared library that is called and calls back through tables,
// as the framework does it; and by the same code in the host itself.
// scripts/bench.sh abi runs this.
#include <benchmark/benchmark.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <span>
#include <string_view>
#include <vector>

#include "framework/base/log.h"
#include "framework/device/callback_monitor.h"
#include "framework/plugin/plugin.h"
#include "tests/bench/null_answer.h"
#include "virtbay/sdk/abi.h"

namespace virtbay::bench {
namespace {

constexpr uint32_t kView = 64;
constexpr uint32_t kMaxBatch = 128;

// ---- a host that counts -------------------------------------------------------------------------

uint64_t answers = 0;
uint64_t answered_bytes = 0;

int32_t Complete(virtbay_request* request, uint32_t out_bytes, uint32_t written) {
  if (out_bytes > written || written > request->out_total) return VIRTBAY_OUT_OF_RANGE;
  ++answers;
  answered_bytes += written;
  return VIRTBAY_OK;
}
int32_t EndNothing(virtbay_request* /*request*/) { return VIRTBAY_OK; }

const void* Service(const virtbay_host* /*host*/, const char* id) {
  static constexpr virtbay_queue_service kQueue = {
      sizeof(virtbay_queue_service), 0, &Complete, &EndNothing, &EndNothing, nullptr, nullptr};
  // Of the others the null device calls nothing.
  alignas(std::max_align_t) static constexpr std::array<std::byte, 1024> kUncalled = {};
  if (std::string_view(id) == VIRTBAY_SERVICE_QUEUE) return &kQueue;
  return kUncalled.data();
}

struct Batch {
  Batch() {
    for (uint32_t i = 0; i < kMaxBatch; ++i) {
      virtbay_request& request = requests[i];
      request.struct_size = sizeof(request);
      request.head = static_cast<uint16_t>(i);
      request.in = views[i].data();
      request.out = views[i].data() + kView;
      request.in_len = request.in_total = kView;
      request.out_len = request.out_total = kView;
      pointers[i] = &request;
    }
  }
  std::array<std::array<uint8_t, 2 * kView>, kMaxBatch> views = {};
  std::array<virtbay_request, kMaxBatch> requests = {};
  std::array<virtbay_request*, kMaxBatch> pointers = {};
};

void Count(benchmark::State& state) {
  state.SetItemsProcessed(state.iterations() * state.range(0));
  if (answers == 0) state.SkipWithError("nothing was answered");
}

// ---- across, and without ------------------------------------------------------------------------

// As plugin_call.h does it: with a mark for the watchdog, and a net for exceptions.
void CallAcross(CallbackMonitor* monitor, virtbay_device* device, virtbay_request* const* requests,
                uint32_t count) noexcept {
  const CallbackMonitor::Scope scope(monitor, "on_requests", 0);
  try {
    device->ops->on_requests(device, 0, requests, count);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "abi_bench: %s\n", e.what());
  }
}

void Across(benchmark::State& state, virtbay_device* device) {
  static Batch batch;
  CallbackMonitor monitor;
  const auto count = static_cast<uint32_t>(state.range(0));
  answers = 0;
  for (auto _ : state) CallAcross(&monitor, device, batch.pointers.data(), count);
  Count(state);
}

void Without(benchmark::State& state) {
  static Batch batch;
  const auto count = static_cast<uint32_t>(state.range(0));
  answers = 0;
  for (auto _ : state) {
    for (uint32_t i = 0; i < count; ++i) {
      virtbay_request* const request = batch.pointers[i];
      const auto written = static_cast<uint32_t>(
          NullAnswer({reinterpret_cast<std::byte*>(request->out), request->out_len}));
      benchmark::DoNotOptimize(Complete(request, written, written));
    }
    benchmark::ClobberMemory();
  }
  Count(state);
}

int Run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  virtbay_host host = {};
  host.struct_size = sizeof(host);
  host.abi_major = VIRTBAY_ABI_MAJOR;
  host.abi_minor = VIRTBAY_ABI_MINOR;
  host.name = "virtbay";
  host.version = "0";
  host.service = &Service;
  const auto plugin = Plugin::Load(VIRTBAY_NULL_PLUGIN, host, Log::ToStderr(LogLevel::kWarn));
  if (!plugin.ok()) {
    std::fprintf(stderr, "abi_bench: %s\n", plugin.status().ToString().c_str());
    return 1;
  }
  const auto device = (*plugin)->CreateDevice(0, host, nullptr);
  if (!device.ok()) {
    std::fprintf(stderr, "abi_bench: %s\n", device.status().ToString().c_str());
    return 1;
  }
  for (const int64_t batch : {1, 8, 32, 128}) {
    benchmark::RegisterBenchmark("across", &Across, *device)->Arg(batch);
    benchmark::RegisterBenchmark("without", &Without)->Arg(batch);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  (*device)->ops->destroy(*device);
  return 0;
}

}  // namespace
}  // namespace virtbay::bench

int main(int argc, char** argv) { return virtbay::bench::Run(argc, argv); }
