#include "framework/plugin/plugin.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"
#include "framework/plugin/inspect.h"
#include "framework/plugin/library.h"
#include "framework/plugin/symbolize.h"

namespace virtbay {
namespace {

constexpr uint32_t kMaxDeviceTypes = 64;
constexpr uint32_t kMaxOptions = 1024;

// A plugin's error code and text as a status. The text came from the plugin: bounded, made
// printable. An exception thrown across the boundary arrives as kThrew.
constexpr int32_t kThrew = -1;

absl::Status FromPlugin(int32_t code, const virtbay_error& error, absl::string_view what) {
  std::string text(error.text, strnlen(error.text, sizeof(error.text)));
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  if (text.empty()) text = absl::StrCat("code ", code, " without a text");
  const bool canonical =
      code > 0 && code <= static_cast<int32_t>(absl::StatusCode::kUnauthenticated);
  return absl::Status(canonical ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
                      absl::StrCat(what, ": ", text));
}

absl::Status CheckType(const virtbay_device_type* type, uint32_t index) {
  const std::string what = absl::StrCat("device type ", index);
  if (type == nullptr) return absl::InvalidArgumentError(what + ": describe() gave NULL");
  if (type->struct_size < sizeof(virtbay_device_type)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": struct_size ", type->struct_size, " is too small"));
  }
  VIRTBAY_ASSIGN_OR_RETURN(const absl::string_view name,
                           CheckText(type->name, sizeof(type->name), what + ": its name"));
  if (name.empty()) return absl::InvalidArgumentError(what + ": its name is empty");
  if (type->virtio_id == 0) return absl::InvalidArgumentError(what + ": virtio id 0");
  return absl::OkStatus();
}

// Of ABI 1.0: what came later may be missing.
constexpr size_t kFirstOps = offsetof(virtbay_device_ops, farewell);

absl::Status CheckOps(const virtbay_device* device) {
  if (device == nullptr) return absl::InternalError("create() succeeded without a device");
  const virtbay_device_ops* ops = device->ops;
  if (ops == nullptr) return absl::InternalError("create() gave a device without functions");
  if (ops->struct_size < kFirstOps) {
    return absl::InternalError(absl::StrCat("its functions have struct_size ", ops->struct_size,
                                            ", ABI ", VIRTBAY_ABI_MAJOR, ".0 has ", kFirstOps));
  }
  if (ops->init == nullptr || ops->properties == nullptr || ops->on_requests == nullptr ||
      ops->destroy == nullptr) {
    return absl::InternalError("one of init, properties, on_requests and destroy is missing");
  }
  return absl::OkStatus();
}

}  // namespace

struct Plugin::Impl {
  std::filesystem::path path;
  Log log;
  std::unique_ptr<PluginLibrary> library;
  const virtbay_plugin* entry = nullptr;
  const virtbay_device_factory* factory = nullptr;
  std::vector<const virtbay_device_type*> types;
  bool loaded = false;  // load() was called and succeeded
  bool contain = false;
  std::atomic<bool> damaged{false};

  // Calls into the plugin. The contract forbids exceptions across the boundary; one that comes
  // nevertheless must end here, before it meets a frame that cannot be unwound.
  template <typename F>
  absl::Status Call(absl::string_view what, F&& function);
  // Ends a device that is of no use; one whose table does not reach to destroy is leaked.
  void DestroyIfPossible(virtbay_device* device);
  std::string Report(const Crash& crash, absl::string_view doing, absl::string_view more) const;
  absl::Status Start(const virtbay_host& host, const PluginFileInfo& info);
  absl::Status FindFactory();
  void Stop();
  std::string TypeNames() const {
    return absl::StrJoin(types, ", ", [](std::string* out, const virtbay_device_type* type) {
      absl::StrAppend(out, type->name);
    });
  }
};

namespace {

// What a control thread does in load(), factory(), create() ...
template <typename Impl>
class LoadScene final : public CrashScene {
 public:
  LoadScene(const Impl* impl, absl::string_view what) : impl_(impl), what_(what) {}
  bool InPlugin() const override { return true; }
  std::string Describe(const Crash& crash) const override {
    return impl_->Report(crash, what_, {});
  }

 private:
  const Impl* const impl_;
  const absl::string_view what_;
};

}  // namespace

template <typename F>
absl::Status Plugin::Impl::Call(absl::string_view what, F&& function) {
  if (damaged) return absl::FailedPreconditionError(absl::StrCat(what, ": it has crashed before"));
  virtbay_error error{};
  error.struct_size = sizeof(error);
  int32_t code = kThrew;
  const LoadScene<Impl> scene(this, what);
  const CrashScope scope(&scene);
  try {
    const auto call = [&] { code = function(&error); };
    if (contain) {
      Crash crash;
      if (!CallContained(call, &crash)) {
        damaged = true;
        AddContained();
        log.Error(scene.Describe(crash));
        return absl::InternalError(absl::StrCat(what, ": the plugin crashed: ", CrashText(crash)));
      }
    } else {
      call();
    }
  } catch (const std::exception& e) {
    return absl::InternalError(absl::StrCat(what, ": threw an exception: ", e.what()));
  } catch (...) {
    return absl::InternalError(absl::StrCat(what, ": threw an exception"));
  }
  return code == VIRTBAY_OK ? absl::OkStatus() : FromPlugin(code, error, what);
}

void Plugin::Impl::DestroyIfPossible(virtbay_device* device) {
  if (device == nullptr || device->ops == nullptr || device->ops->struct_size < kFirstOps ||
      device->ops->destroy == nullptr) {
    return;
  }
  static_cast<void>(Call("destroy()", [&](virtbay_error*) {
    device->ops->destroy(device);
    return VIRTBAY_OK;
  }));
}

std::string Plugin::Impl::Report(const Crash& crash, absl::string_view doing,
                                 absl::string_view more) const {
  std::string text = absl::StrCat("plugin ", path.native());
  if (entry != nullptr) {
    const auto word = [](const auto& array) {
      return absl::string_view(array, strnlen(array, sizeof(array)));
    };
    absl::StrAppend(&text, " (", word(entry->name), " ", word(entry->version), ", build ",
                    word(entry->build), ")");
  }
  absl::StrAppend(&text, " crashed: ", CrashText(crash), " in ", doing);
  if (!more.empty()) absl::StrAppend(&text, "\n", more);
  if (crash.in_allocator) {
    absl::StrAppend(&text,
                    "\n  in the memory allocator: the heap, which all devices share, is damaged; "
                    "a crash like this is not contained");
  }
  const ImageFile file{entry, library == nullptr ? -1 : library->fd(), path.native()};
  for (const std::string& line : SymbolizeStack(crash.stack(), file)) {
    absl::StrAppend(&text, "\n  ", line);
  }
  return text;
}

absl::Status Plugin::Impl::Start(const virtbay_host& host, const PluginFileInfo& info) {
  entry = static_cast<const virtbay_plugin*>(library->Symbol(VIRTBAY_ENTRY_SYMBOL));
  if (entry == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("the dynamic linker finds no ", VIRTBAY_ENTRY_SYMBOL));
  }
  // Again: a relocation may have changed what the file says.
  VIRTBAY_RETURN_IF_ERROR(CheckEntry(*entry));
  if (entry->factory == nullptr) return absl::InvalidArgumentError("has no factory function");
  if (!info.unique.empty()) {
    log.Warn(absl::StrCat("plugin ", path.native(), " has UNIQUE symbols (", info.unique.front(),
                          ", ...) and will stay mapped when it is unloaded"));
  }
  if (entry->load != nullptr) {
    VIRTBAY_RETURN_IF_ERROR(
        Call("load()", [&](virtbay_error* error) { return entry->load(&host, error); }));
  }
  loaded = true;
  return FindFactory();
}

absl::Status Plugin::Impl::FindFactory() {
  const void* table = nullptr;
  VIRTBAY_RETURN_IF_ERROR(Call("factory()", [&](virtbay_error*) {
    table = entry->factory(VIRTBAY_FACTORY_DEVICE);
    return VIRTBAY_OK;
  }));
  if (table == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("has no factory '", VIRTBAY_FACTORY_DEVICE, "'"));
  }
  factory = static_cast<const virtbay_device_factory*>(table);
  if (factory->struct_size < sizeof(virtbay_device_factory)) {
    return absl::InvalidArgumentError(
        absl::StrCat("its factory has struct_size ", factory->struct_size, ", ABI ",
                     VIRTBAY_ABI_MAJOR, ".0 has ", sizeof(virtbay_device_factory)));
  }
  if (factory->count == 0 || factory->count > kMaxDeviceTypes) {
    return absl::InvalidArgumentError(absl::StrCat("its factory has ", factory->count,
                                                   " device types, not 1 to ", kMaxDeviceTypes));
  }
  if (factory->describe == nullptr || factory->create == nullptr) {
    return absl::InvalidArgumentError("its factory lacks describe or create");
  }
  for (uint32_t i = 0; i < factory->count; ++i) {
    const virtbay_device_type* type = nullptr;
    VIRTBAY_RETURN_IF_ERROR(Call("describe()", [&](virtbay_error*) {
      type = factory->describe(i);
      return VIRTBAY_OK;
    }));
    VIRTBAY_RETURN_IF_ERROR(CheckType(type, i));
    for (const virtbay_device_type* other : types) {
      // NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): CheckType refuses null.
      if (std::strcmp(other->name, type->name) == 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("two device types have the name '", type->name, "'"));
      }
    }
    types.push_back(type);
  }
  return absl::OkStatus();
}

void Plugin::Impl::Stop() {
  if (damaged && library != nullptr) {
    library->Leak();
    library.reset();
    return;
  }
  if (std::exchange(loaded, false) && entry->unload != nullptr) {
    const absl::Status status = Call("unload()", [&](virtbay_error*) {
      entry->unload();
      return VIRTBAY_OK;
    });
    if (!status.ok()) log.Error(absl::StrCat("plugin ", path.native(), ": ", status.message()));
  }
  if (library != nullptr && !library->Unload()) {
    log.Warn(absl::StrCat("plugin ", path.native(),
                          " was closed but is still mapped: a living thread has thread_local "
                          "objects of it, or it has UNIQUE symbols; its memory is lost"));
  }
  library.reset();
}

absl::StatusOr<std::unique_ptr<Plugin>> Plugin::Load(const std::filesystem::path& path,
                                                     const virtbay_host& host, const Log& log,
                                                     bool contain) {
  VIRTBAY_ASSIGN_OR_RETURN(const UniqueFd source, OpenPluginFile(path));
  // What is checked is what is loaded: both see the copy, which nobody else can write.
  VIRTBAY_ASSIGN_OR_RETURN(PrivateCopy copy, PrivateCopy::Create(source.get(), path));
  VIRTBAY_ASSIGN_OR_RETURN(const PluginFileInfo info, InspectPluginFd(copy.fd(), path));
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->log = log;
  impl->contain = contain;
  VIRTBAY_ASSIGN_OR_RETURN(impl->library, PluginLibrary::Load(std::move(copy), path));
  if (const absl::Status status = impl->Start(host, info); !status.ok()) {
    impl->Stop();
    return Annotate(status, absl::StrCat("plugin ", path.native()));
  }
  return std::unique_ptr<Plugin>(new Plugin(std::move(impl)));
}

Plugin::Plugin(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Plugin::~Plugin() { impl_->Stop(); }

const virtbay_plugin& Plugin::entry() const { return *impl_->entry; }

const virtbay_device_factory& Plugin::factory() const { return *impl_->factory; }

const std::filesystem::path& Plugin::path() const { return impl_->path; }

void Plugin::SetDamaged() { impl_->damaged = true; }

bool Plugin::damaged() const { return impl_->damaged; }

std::string Plugin::CrashReport(const Crash& crash, absl::string_view doing,
                                absl::string_view more) const {
  return impl_->Report(crash, doing, more);
}

std::string Plugin::StackText(std::span<void* const> frames) const {
  const ImageFile file{impl_->entry, impl_->library->fd(), path().native()};
  std::string text;
  for (const std::string& line : SymbolizeStack(frames, file)) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", "  ", line);
  }
  return text;
}

absl::StatusOr<const virtbay_device_type*> Plugin::FindType(absl::string_view name,
                                                            uint32_t* index) const {
  const auto& types = impl_->types;
  if (name.empty() && types.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("plugin ", path().native(),
                     " has several device types; name one of: ", impl_->TypeNames()));
  }
  for (uint32_t i = 0; i < types.size(); ++i) {
    if (name.empty() || name == types[i]->name) {
      *index = i;
      return types[i];
    }
  }
  return absl::NotFoundError(absl::StrCat("plugin ", path().native(), " has no device type '", name,
                                          "'; it has: ", impl_->TypeNames()));
}

absl::StatusOr<std::map<std::string, uint32_t>> Plugin::OptionKinds(uint32_t index) const {
  const std::string subject = absl::StrCat("plugin ", path().native(), ": its options");
  std::map<std::string, uint32_t> kinds;
  const void* found = nullptr;
  absl::Status status = impl_->Call("factory()", [&](virtbay_error*) {
    found = impl_->entry->factory(VIRTBAY_FACTORY_OPTIONS);
    return VIRTBAY_OK;
  });
  if (!status.ok()) return Annotate(status, subject);
  const auto* table = static_cast<const virtbay_device_options*>(found);
  if (table == nullptr) return kinds;
  if (table->struct_size < sizeof(virtbay_device_options) || table->describe == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(subject, ": the table is too small"));
  }
  for (uint32_t i = 0; i <= kMaxOptions; ++i) {
    const virtbay_option* option = nullptr;
    status = impl_->Call("describe()", [&](virtbay_error*) {
      option = table->describe(index, i);
      return VIRTBAY_OK;
    });
    if (!status.ok()) return Annotate(status, subject);
    if (option == nullptr) return kinds;
    if (option->struct_size < sizeof(virtbay_option) || option->name == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(subject, ": option ", i, " is too small"));
    }
    kinds.emplace(option->name, option->kind);
  }
  return absl::InvalidArgumentError(absl::StrCat(subject, ": more than ", kMaxOptions));
}

absl::StatusOr<virtbay_device*> Plugin::CreateDevice(uint32_t index, const virtbay_host& host,
                                                     virtbay_host_device* device_host) const {
  virtbay_device* device = nullptr;
  absl::Status status = impl_->Call("create()", [&](virtbay_error* error) {
    return impl_->factory->create(index, &host, device_host, &device, error);
  });
  if (status.ok()) {
    status = CheckOps(device);
    if (!status.ok()) impl_->DestroyIfPossible(device);
  }
  if (!status.ok()) return Annotate(status, absl::StrCat("plugin ", path().native()));
  return device;
}

}  // namespace virtbay
