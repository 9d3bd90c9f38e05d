#include "framework/plugin/library.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <boost/dll/shared_library.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "framework/base/sanitized.h"
#include "framework/base/status.h"

namespace virtbay {
namespace {

constexpr uint64_t kMaxFileSize = uint64_t{1} << 30;

boost::dll::load_mode::type LoadMode() {
  auto mode = boost::dll::load_mode::rtld_now | boost::dll::load_mode::rtld_local;
  // Reports at the end of the process name functions of images that were unloaded before.
  if (kSanitized) mode |= static_cast<boost::dll::load_mode::type>(RTLD_NODELETE);
  return mode;
}

// Places for the copy; what is mounted noexec cannot be mapped as code.
std::vector<std::string> Candidates() {
  std::vector<std::string> places;
  for (const char* variable : {"TMPDIR", "XDG_RUNTIME_DIR"}) {
    if (const char* value = std::getenv(variable); value != nullptr && value[0] == '/') {
      places.emplace_back(value);
    }
  }
  places.insert(places.end(), {"/tmp", "/var/tmp", "/dev/shm"});
  return places;
}

struct CloseDirectory {
  void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

constexpr char kDirectoryPrefix[] = "virtbay-plugin-";
constexpr char kDirectorySuffix[] = "XXXXXX";
constexpr mode_t kDirectoryMode = 0700;  // mkdtemp's
constexpr mode_t kCopyMode = 0500;

// Whether a directory holds a copy and nothing else, so that it is a loader's and not somebody's
// own of a similar name: at most one file, readable and executable for its owner alone, as copies
// are.
bool HoldsOnlyACopy(DIR* directory, std::string* copy) {
  copy->clear();
  while (const dirent* file = readdir(directory)) {
    const absl::string_view name = file->d_name;
    if (name == "." || name == "..") continue;
    struct stat info {};
    if (!copy->empty() ||
        fstatat(dirfd(directory), file->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0 ||
        info.st_mode != (S_IFREG | kCopyMode)) {
      return false;
    }
    *copy = file->d_name;
  }
  return true;
}

// Removes what loaders left behind that were ended between copy and removal (a kill; for a build
// with sanitizers, anything that skips destructors). A loader that lives holds the lock of its
// directory, wherever it runs: process ids would say nothing across containers.
void RemoveLeftBehind(const std::string& place) {
  const Directory listing(opendir(place.c_str()));
  if (listing == nullptr) return;
  while (const dirent* entry = readdir(listing.get())) {
    if (!absl::StartsWith(entry->d_name, kDirectoryPrefix) ||
        strlen(entry->d_name) != strlen(kDirectoryPrefix) + strlen(kDirectorySuffix)) {
      continue;
    }
    const int parent = dirfd(listing.get());
    const int fd = openat(parent, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) continue;
    const Directory left(fdopendir(fd));
    if (left == nullptr) {
      close(fd);
      continue;
    }
    struct stat info {};
    std::string copy;
    if (fstat(fd, &info) != 0 || info.st_uid != geteuid() ||
        info.st_mode != (S_IFDIR | kDirectoryMode) || flock(fd, LOCK_EX | LOCK_NB) != 0 ||
        !HoldsOnlyACopy(left.get(), &copy)) {
      continue;
    }
    if (!copy.empty()) static_cast<void>(unlinkat(fd, copy.c_str(), 0));
    static_cast<void>(unlinkat(parent, entry->d_name, AT_REMOVEDIR));
  }
}

// The lock by which others see that somebody uses the directory; invalid when it was taken for one
// that was left behind, and is gone.
UniqueFd LockDirectory(const std::string& name) {
  UniqueFd fd(open(name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat info {};
  if (!fd || (flock(fd.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) ||
      fstat(fd.get(), &info) != 0 || info.st_nlink == 0) {
    return UniqueFd();
  }
  return fd;
}

struct PrivateDirectory {
  std::filesystem::path path;
  UniqueFd lock;
};

absl::StatusOr<PrivateDirectory> MakePrivateDirectory() {
  absl::Status error = absl::NotFoundError("no place for a private copy");
  for (const std::string& place : Candidates()) {
    struct statvfs fs {};
    if (statvfs(place.c_str(), &fs) != 0) {
      error = ErrnoStatus(errno, place);
      continue;
    }
    if ((fs.f_flag & ST_NOEXEC) != 0) {
      error = absl::PermissionDeniedError(absl::StrCat(place, ": mounted noexec"));
      continue;
    }
    RemoveLeftBehind(place);
    // Again when another loader has just mistaken the new directory for one that was left behind.
    constexpr int kAttempts = 100;
    for (int i = 0; i < kAttempts; ++i) {
      std::string name = absl::StrCat(place, "/", kDirectoryPrefix, kDirectorySuffix);
      if (mkdtemp(name.data()) == nullptr) {
        error = ErrnoStatus(errno, name);
        break;
      }
      if (UniqueFd lock = LockDirectory(name)) return PrivateDirectory{name, std::move(lock)};
      error = absl::UnavailableError(absl::StrCat(name, ": cannot be locked"));
    }
  }
  return error;
}

absl::Status CopyBytes(int from, int to) {
  std::vector<char> buffer(size_t{256} << 10);
  uint64_t total = 0;
  for (;;) {
    const ssize_t n = pread(from, buffer.data(), buffer.size(), static_cast<off_t>(total));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read");
    if (n == 0) return absl::OkStatus();
    total += static_cast<uint64_t>(n);
    if (total > kMaxFileSize) return absl::InvalidArgumentError("larger than 1 GiB");
    for (ssize_t done = 0; done < n;) {
      const ssize_t written = write(to, buffer.data() + done, static_cast<size_t>(n - done));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return ErrnoStatus(errno, "write of a private copy");
      done += written;
    }
  }
}

// Whether an image of that name is mapped.
bool Resident(const std::string& path) {
  return dl_iterate_phdr(
             [](dl_phdr_info* info, size_t, void* wanted) {
               return static_cast<int>(
                   std::strcmp(info->dlpi_name, static_cast<const char*>(wanted)) == 0);
             },
             const_cast<char*>(path.c_str())) != 0;
}

}  // namespace

absl::StatusOr<PrivateCopy> PrivateCopy::Create(int source, const std::filesystem::path& shown) {
  const std::string subject = absl::StrCat("plugin ", shown.native());
  absl::StatusOr<PrivateDirectory> directory = MakePrivateDirectory();
  if (!directory.ok()) return Annotate(directory.status(), subject);
  PrivateCopy copy;
  copy.directory_ = std::move(directory->path);
  copy.lock_ = std::move(directory->lock);
  copy.path_ = copy.directory_ / shown.filename();
  UniqueFd out(
      open(copy.path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, kCopyMode));
  if (!out.valid()) return Annotate(ErrnoStatus(errno, copy.path_.native()), subject);
  VIRTBAY_RETURN_IF_ERROR(Annotate(CopyBytes(source, out.get()), subject));
  copy.fd_.reset(open(copy.path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!copy.fd_.valid()) return Annotate(ErrnoStatus(errno, copy.path_.native()), subject);
  return copy;
}

PrivateCopy& PrivateCopy::operator=(PrivateCopy&& other) noexcept {
  std::swap(directory_, other.directory_);
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(lock_, other.lock_);
  return *this;
}

void PrivateCopy::Remove() {
  if (directory_.empty()) return;
  static_cast<void>(unlink(path_.c_str()));
  static_cast<void>(rmdir(directory_.c_str()));
  directory_.clear();
  lock_.reset();
}

struct PluginLibrary::Handle {
  boost::dll::shared_library library;
};

absl::StatusOr<std::unique_ptr<PluginLibrary>> PluginLibrary::Load(
    PrivateCopy copy, const std::filesystem::path& shown) {
  auto handle = std::make_unique<Handle>();
  std::error_code ec;
  handle->library.load(copy.path(), ec, LoadMode());
  if (ec) {
    // The error_code is the same for every failure; the linker's text is this thread's until the
    // next dl function.
    const char* text = dlerror();
    std::string reason = text != nullptr ? text : ec.message();
    return absl::FailedPreconditionError(
        absl::StrCat("plugin ", shown.native(), ": cannot be loaded: ",
                     absl::StrReplaceAll(reason, {{copy.path().native(), shown.native()}})));
  }
  if (!kSanitized) {
    // Nothing stays behind whatever becomes of the process. A sanitizer reads the file later.
    copy.Remove();
  }
  return std::unique_ptr<PluginLibrary>(new PluginLibrary(std::move(copy), std::move(handle)));
}

PluginLibrary::PluginLibrary(PrivateCopy copy, std::unique_ptr<Handle> handle)
    : copy_(std::move(copy)), handle_(std::move(handle)) {}

PluginLibrary::~PluginLibrary() { Unload(); }

const void* PluginLibrary::Symbol(const char* name) const {
  if (handle_ == nullptr || !handle_->library.has(name)) return nullptr;
  return &handle_->library.get<const char>(name);
}

bool PluginLibrary::Unload() {
  if (handle_ == nullptr) return true;
  handle_->library.unload();
  handle_.reset();
  return kSanitized || !Resident(copy_.path().native());
}

void PluginLibrary::Leak() { static_cast<void>(handle_.release()); }

}  // namespace virtbay
