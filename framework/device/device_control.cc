// Commands to a running device (the extension virtbay.device.control): what Host::Control does.
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/device/device.h"
#include "framework/device/plugin_call.h"

namespace virtbay {
namespace {

constexpr size_t kMaxText = 1u << 20;
constexpr uint32_t kFirstAnswer = 64u << 10;
constexpr uint32_t kMaxAnswer = 64u << 20;
static_assert(kFirstAnswer >= VIRTBAY_CONTROL_ANSWER_MIN);

}  // namespace

const virtbay_device_control* Device::ControlTable() {
  const auto* table =
      static_cast<const virtbay_device_control*>(generation_->Extension(VIRTBAY_EXTENSION_CONTROL));
  if (table == nullptr || table->struct_size < sizeof(*table) || table->control == nullptr) {
    return nullptr;
  }
  return table;
}

absl::StatusOr<std::string> Device::Control(const std::string& command, absl::string_view text) {
  if (text.size() > kMaxText) {
    return absl::InvalidArgumentError(absl::StrCat("a command's text of ", text.size(), " bytes"));
  }
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckCallable());
  const virtbay_device_control* table = ControlTable();
  if (table == nullptr) {
    return absl::UnimplementedError(absl::StrCat("device ", core_->spec.name, ": devices of type ",
                                                 generation_->type(), " take no commands"));
  }
  std::string answer(kFirstAnswer, '\0');
  for (;;) {
    uint32_t length = 0;
    const absl::Status status = CallOnControl(core_.get(), command, [&](virtbay_error* error) {
      return table->control(core_->device, command.c_str(), text.data(),
                            static_cast<uint32_t>(text.size()), answer.data(),
                            static_cast<uint32_t>(answer.size()), &length, error);
    });
    if (status.ok() && length <= answer.size()) {
      answer.resize(length);
      return answer;
    }
    if (status.ok()) return absl::InternalError(absl::StrCat(command, ": the answer's size lies"));
    if (!absl::IsOutOfRange(status) || length <= answer.size() || length > kMaxAnswer) {
      return Annotate(status, absl::StrCat("device ", core_->spec.name));
    }
    // What it looks at may have grown in between, so this is not the last time for sure.
    answer.assign(length, '\0');
  }
}

}  // namespace virtbay
