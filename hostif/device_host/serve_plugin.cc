#include "hostif/device_host/serve_plugin.h"

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/device_host/run_service.h"

namespace virtbay::device_host {

ServePlugin::ServePlugin(CLI::App* serve)
    : app_(serve->add_subcommand("plugin", "A device of any plugin")), common_(app_, "plugin") {
  app_->add_option("file", file_, "A path, or the name of a plugin to look up")
      ->required()
      ->type_name("FILE");
  app_->add_option("--type", type_, "Device type, when the plugin has several")->group("Device");
  common_.AddOption("Device");
  common_.AddSocket();
  common_.AddHost();
  common_.Key("--dma", "dma", "bounce (default) or direct");
  app_->add_flag("--check", check_, "Make the device and end, without a socket")->group("Host");
}

absl::Status ServePlugin::Run() {
  DeviceConfig device = common_.Device();
  device.spec.plugin = file_;
  device.spec.type = type_;
  device.spec.options = common_.options();
  if (app_->count("--name") == 0) {
    const std::string name = std::filesystem::path(file_).stem();
    const absl::Status named = SetDeviceKey("name", KeyValue(name), &device);
    if (!named.ok()) Usage(absl::StrCat("FILE: '", name, "' is no name for a device, see --name"));
  }
  ServeOptions::Finish(&device);
  ServiceConfig config = common_.Service(std::move(device), "info");
  return check_ ? CheckService(config) : RunService(std::move(config));
}

}  // namespace virtbay::device_host
