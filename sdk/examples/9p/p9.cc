// virtio-9p (virtio's 9P transport, 9P2000.L): a directory of the host for Linux' `mount -t 9p`.
// Shows a protocol with state of its own, which is saved and restored, payload that is not looked
// at (Tread, Twrite), and replies that are larger than the view (Treaddir).
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tree.h"
#include "virtbay/sdk/option.h"
#include "virtbay/sdk/plugin.h"
#include "wire.h"

namespace {

namespace sdk = virtbay::sdk;
using p9::File;
using p9::Reader;
using p9::Tree;
using p9::Writer;
using sdk::Device;
using sdk::Host;
using sdk::Properties;
using sdk::QueueProperties;
using sdk::Request;
using sdk::Status;

constexpr uint32_t kVirtioId9p = 9;
constexpr uint32_t kQueueSize = 256;
constexpr uint32_t kView = 512;           // a reply without data is smaller
constexpr uint32_t kMaxBody = 16 * 1024;  // of a message without data: a walk of 16 long names
constexpr uint32_t kMaxListing = 64 * 1024;
constexpr uint32_t kMaxMsize = 1024 * 1024;
constexpr uint32_t kMagic = 0x01021997;  // V9FS_MAGIC
constexpr uint64_t kBasicStats = 0x7ff;  // all but birth time and generation
constexpr uint32_t kPathRole = 1;        // of a saved state's descriptors
constexpr uint32_t kOpenRole = 2;

class NineP final : public Device {
 public:
  static constexpr std::array kOptions = {
      sdk::MakeOption("shared-dir", VIRTBAY_OPTION_TEXT),
      sdk::MakeOption("tag", VIRTBAY_OPTION_TEXT),
      sdk::MakeOption("readonly", VIRTBAY_OPTION_BOOLEAN),
      sdk::MakeOption("msize", VIRTBAY_OPTION_INTEGER),
  };

  ~NineP() override { Forget(); }

  Status Init() override {
    Status known = sdk::CheckKnown(host(), kOptions);
    if (!known.ok()) return known;
    const std::string directory = host().Option("shared-dir").value_or("");
    if (directory.empty()) return sdk::InvalidArgument("option shared-dir: missing");
    tag_ = host().Option("tag").value_or("virtbay");
    if (tag_.empty() || tag_.size() > 255) return sdk::BadValue("tag", tag_, "of 1 to 255 bytes");
    if (const auto text = host().Option("readonly")) {
      Status parsed = sdk::ParseBool("readonly", *text, &readonly_);
      if (!parsed.ok()) return parsed;
    }
    if (const auto text = host().Option("msize")) {
      Status parsed = sdk::ParseNumber("msize", *text, p9::kMinSize, kMaxMsize, &most_);
      if (!parsed.ok()) return parsed;
    }
    if (const int error = tree_.Open(directory)) {
      return sdk::Errno(error, "option shared-dir: " + directory);
    }
    ops_.resize(kQueueSize);
    read_ = host().Counter("bytes_read", "Bytes that the guest read");
    written_ = host().Counter("bytes_written", "Bytes that the guest wrote");
    errors_ = host().Counter("errors", "Requests that ended in an error");
    fid_count_ = host().Gauge("fids", "What the guest holds");
    return {};
  }

  // VIRTIO_9P_MOUNT_TAG; the configuration space is the tag's length and the tag.
  Properties GetProperties() const override {
    return {.queue_count = 1, .features = 1, .config_size = 2 + static_cast<uint32_t>(tag_.size())};
  }
  QueueProperties GetQueueProperties(uint32_t /*queue*/) const override {
    return {.max_size = kQueueSize, .in_view = kView, .out_view = kView};
  }
  bool ReadConfig(uint32_t offset, std::span<std::byte> data) override {
    std::string config(2, '\0');
    config[0] = static_cast<char>(tag_.size());
    config += tag_;
    std::memcpy(data.data(), config.data() + offset, data.size());
    return true;
  }

  // A driver that comes next begins with a session of its own.
  void Deactivate() override { Forget(); }

  void OnRequests(uint32_t /*queue*/, std::span<Request> requests) override {
    for (Request& request : requests) Begin(std::move(request));
  }

  void OnIo(uint32_t /*queue*/, std::span<const virtbay_io_result> results) override {
    for (const virtbay_io_result& result : results) {
      Op& op = ops_[result.cookie];
      Request request(&host(), result.request);
      if ((result.result == -EINTR || result.result == -EAGAIN) && op.retries++ < 64) {
        Submit(&op, std::move(request));
        continue;
      }
      Unref(std::exchange(op.file, nullptr));
      const uint16_t tag = op.tag;
      Answer(std::move(request), op.type, tag, result.result);
      EndFlushes(tag);
    }
  }

  // What the guest holds, and where it is in its listings.
  Status Save(sdk::StateWriter* state) override {
    std::vector<SavedFid> saved;
    for (const auto& [fid, file] : fids_) {
      saved.push_back({fid, file->flags, file->uid, file->io ? 1u : 0u, file->at});
      state->AddFd(kPathRole, file->path.get());
      if (file->io) state->AddFd(kOpenRole, file->io.get());
    }
    state->Add(1, &msize_, sizeof(msize_));
    state->Add(2, saved.data(), saved.size() * sizeof(SavedFid));
    return {};
  }
  Status Restore(sdk::StateReader* state) override {
    const auto msize = state->Find(1);
    const auto fids = state->Find(2);
    if (!msize || msize->size() != sizeof(msize_) || !fids ||
        fids->size() % sizeof(SavedFid) != 0) {
      return sdk::InvalidArgument("not the state of a 9P device");
    }
    std::memcpy(&msize_, msize->data(), sizeof(msize_));
    std::vector<sdk::UniqueFd> paths = Take(state, kPathRole);
    std::vector<sdk::UniqueFd> opened = Take(state, kOpenRole);
    std::vector<SavedFid> saved(fids->size() / sizeof(SavedFid));
    if (!saved.empty()) std::memcpy(saved.data(), fids->data(), fids->size());
    size_t open = 0;
    if (paths.size() != saved.size() || msize_ > most_) {
      return sdk::InvalidArgument("the state is of another device");
    }
    for (size_t i = 0; i < saved.size(); ++i) {
      auto file = std::make_unique<File>();
      file->path = std::move(paths[i]);
      if (saved[i].open != 0 && open < opened.size()) file->io = std::move(opened[open++]);
      if ((saved[i].open != 0) != static_cast<bool>(file->io) || fids_.contains(saved[i].fid)) {
        return sdk::InvalidArgument("the state's fids and descriptors do not match");
      }
      file->flags = saved[i].flags;
      file->uid = saved[i].uid;
      file->at = saved[i].at;
      // They are open as it is: counted, whether there is room or not.
      host().TakeDescriptor(0);
      if (file->io) host().TakeDescriptor(0);
      Keep(saved[i].fid, file.release());
    }
    return {};
  }

 private:
  struct SavedFid {
    uint32_t fid, flags, uid, open;
    uint64_t at;
  };
  // I/O that is under way; its place is its request's head.
  struct Op {
    File* file = nullptr;  // while it is
    uint16_t tag = 0;
    uint8_t type = 0;
    uint32_t retries = 0;
    uint32_t count = 0;
    uint64_t offset = 0;
    uint32_t index = 0;
  };
  // A message and its reply.
  struct Call {
    Request request;
    uint8_t type = 0;
    uint16_t tag = 0;
    Reader in;
    Writer out;
  };

  // ---- requests ---------------------------------------------------------------------------------

  void Begin(Request request) {
    // A reply without room for an error cannot be given (virtio has no other way to say so).
    if (request.out_total() < p9::kReadData || request.head() >= kQueueSize) return request.Fail();
    Reader head(request.in());
    const uint32_t size = head.U32();
    const auto type = head.Get<uint8_t>();
    const auto tag = head.Get<uint16_t>();
    // What is behind the head of Twrite is payload, which is not looked at.
    const uint32_t wanted = type == p9::kTwrite ? std::min(size, p9::kWriteData) : size;
    if (!head.ok() || size < p9::kHeader || size > request.in_total() ||
        (msize_ != 0 && size > msize_) || wanted > kMaxBody) {
      return Answer(std::move(request), type, tag, -EINVAL);
    }
    if (msize_ == 0 && type != p9::kTversion) return Answer(std::move(request), type, tag, -EPROTO);
    auto body = request.in();
    if (wanted > body.size()) body = request.Fetch(0, wanted);
    if (body.size() < wanted) return Answer(std::move(request), type, tag, -ENOMEM);
    Call call{std::move(request), type, tag, Reader(body.first(wanted).subspan(p9::kHeader)),
              Writer({})};
    StartReply(&call);
    const int error = Dispatch(&call);
    if (!call.request) return;  // it goes on elsewhere
    if (error != 0 || !call.in.ok() || !call.out.ok()) {
      return Answer(std::move(call.request), type, tag, error != 0 ? -error : -EINVAL);
    }
    call.out.PutAt(0, call.out.size());
    call.request.Complete(call.out.size());
  }

  // The head of a reply of at most so many bytes.
  static void StartReply(Call* call, size_t most = SIZE_MAX) {
    const auto out = call->request.out();
    call->out = Writer(out.first(std::min(most, out.size())));
    call->out.U32(0);
    call->out.Put(static_cast<uint8_t>(call->type + 1));
    call->out.Put(call->tag);
  }

  // The end of a read, write or fsync, or an error.
  void Answer(Request request, uint8_t type, uint16_t tag, int64_t result) {
    Writer out(request.out());
    const auto n = static_cast<uint32_t>(result);
    if (result < 0) {
      Host::Add(errors_);
      out.U32(p9::kHeader + 4);
      out.Put(uint8_t{p9::kRlerror});
      out.Put(tag);
      out.U32(static_cast<uint32_t>(-result));
      return request.Complete(out.size());
    }
    const bool counted = type != p9::kTfsync;
    const uint32_t data = type == p9::kTread ? n : 0;
    out.U32(p9::kHeader + (counted ? 4 : 0) + data);
    out.Put(static_cast<uint8_t>(type + 1));
    out.Put(tag);
    if (counted) out.U32(n);
    if (counted) Host::Add(type == p9::kTread ? read_ : written_, n);
    request.Complete(out.size(), out.size() + data);
  }

  int Dispatch(Call* call) {
    switch (call->type) {
      case p9::kTversion:
        return Version(call);
      case p9::kTattach:
        return Attach(call);
      case p9::kTwalk:
        return Walk(call);
      case p9::kTclunk:
        return Clunk(call) ? 0 : EBADF;
      case p9::kTremove:  // clients use Tunlinkat
        return Clunk(call) ? EOPNOTSUPP : EBADF;
      case p9::kTlopen:
        return Lopen(call);
      case p9::kTlcreate:
        return Lcreate(call);
      case p9::kTread:
      case p9::kTwrite:
        return Transfer(call);
      case p9::kTfsync:
        return Fsync(call);
      case p9::kTreaddir:
        return Readdir(call);
      case p9::kTgetattr:
        return Getattr(call);
      case p9::kTsetattr:
        return Setattr(call);
      case p9::kTstatfs:
        return Statfs(call);
      case p9::kTreadlink:
        return Readlink(call);
      case p9::kTsymlink:
      case p9::kTmknod:
      case p9::kTmkdir:
        return Make(call);
      case p9::kTlink:
        return Link(call);
      case p9::kTrenameat:
        return Rename(call);
      case p9::kTunlinkat:
        return Unlink(call);
      case p9::kTlock:
        return Lock(call);
      case p9::kTgetlock:
        return Getlock(call);
      case p9::kTflush:
        return Flush(call);
      default:
        return EOPNOTSUPP;
    }
  }

  // ---- fids -------------------------------------------------------------------------------------

  File* Find(uint32_t fid) const {
    const auto found = fids_.find(fid);
    return found == fids_.end() ? nullptr : found->second;
  }
  // Takes the file over. Precondition: the fid is not in use.
  void Keep(uint32_t fid, File* file) {
    fids_.emplace(fid, file);
    Gauge();
  }
  void Drop(uint32_t fid) {
    const auto found = fids_.find(fid);
    if (found == fids_.end()) return;
    Unref(found->second);
    fids_.erase(found);
    Gauge();
  }
  void Forget() {
    for (const auto& [fid, file] : fids_) Unref(file);
    fids_.clear();
    msize_ = 0;
    Gauge();
  }
  void Gauge() {
    if (fid_count_ != nullptr) __atomic_store_n(fid_count_, fids_.size(), __ATOMIC_RELAXED);
  }
  void Unref(File* file) {
    if (file == nullptr || --file->uses > 0) return;
    if (file->path) host().GiveDescriptor();
    if (file->io) host().GiveDescriptor();
    delete file;
  }

  // What `open` opens, counted: a descriptor, or a negative errno.
  template <typename F>
  int Counted(F open) {
    if (!host().TakeDescriptor(0)) return -ENFILE;
    const int fd = open();
    if (fd < 0) host().GiveDescriptor();
    return fd;
  }
  int Duplicate(int fd) {
    return Counted([&] {
      const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
      return copy < 0 ? -errno : copy;
    });
  }
  static std::vector<sdk::UniqueFd> Take(sdk::StateReader* state, uint32_t role) {
    std::vector<sdk::UniqueFd> fds;
    for (const int fd : state->TakeFds(role)) fds.emplace_back(fd);
    return fds;
  }

  // ---- session ----------------------------------------------------------------------------------

  int Version(Call* call) {
    const uint32_t msize = call->in.U32();
    const std::string_view version = call->in.Text();
    if (!call->in.ok() || msize < p9::kMinSize) return EMSGSIZE;
    Forget();
    const bool known = version == p9::kVersion;
    msize_ = known ? std::min(msize, most_) : 0;
    call->out.U32(std::min(msize, most_));
    call->out.Text(known ? p9::kVersion : "unknown");
    return 0;
  }

  int Attach(Call* call) {
    const uint32_t fid = call->in.U32();
    call->in.U32();   // afid
    call->in.Text();  // uname
    const std::string_view where = call->in.Text();
    const uint32_t uid = call->in.U32();
    if (!call->in.ok() || Find(fid) != nullptr) return EINVAL;
    if (!where.empty() && where != "/") return ENOENT;
    struct stat st;
    if (fstat(tree_.root().get(), &st) != 0) return errno;
    const int fd = Duplicate(tree_.root().get());
    if (fd < 0) return -fd;
    auto* file = new File;
    file->path.Reset(fd);
    file->uid = uid == UINT32_MAX ? geteuid() : uid;
    Keep(fid, file);
    call->out.Id(Tree::QidOf(st));
    return 0;
  }

  int Walk(Call* call) {
    const uint32_t fid = call->in.U32();
    const uint32_t new_fid = call->in.U32();
    const auto names = call->in.Get<uint16_t>();
    File* const from = Find(fid);
    if (!call->in.ok() || from == nullptr) return EBADF;
    if (from->io || names > p9::kMaxWalk) return EINVAL;
    if (new_fid != fid && Find(new_fid) != nullptr) return EINVAL;
    call->out.Put(uint16_t{0});
    File at;
    uint16_t found = 0;
    for (; found < names; ++found) {
      const std::string_view name = call->in.Text();
      if (!call->in.ok()) break;
      struct stat st;
      sdk::UniqueFd next(tree_.Walk(found == 0 ? *from : at, name));
      const int error = !next ? -next.get() : fstat(next.get(), &st) != 0 ? errno : 0;
      if (error != 0 && found == 0) return error;
      if (error != 0) break;
      at.path = std::move(next);
      call->out.Id(Tree::QidOf(st));
    }
    if (!call->in.ok()) return EINVAL;
    const uint16_t count = found;
    call->request.Write(p9::kHeader, count);
    if (found < names) return 0;  // the new fid is not made
    const int fd = Duplicate(names == 0 ? from->path.get() : at.path.get());
    if (fd < 0) return -fd;
    auto* file = new File;
    file->path.Reset(fd);
    file->uid = from->uid;
    if (new_fid == fid) Drop(fid);
    Keep(new_fid, file);
    return 0;
  }

  bool Clunk(Call* call) {
    const uint32_t fid = call->in.U32();
    const bool there = call->in.ok() && Find(fid) != nullptr;
    if (there) Drop(fid);
    return there;
  }

  // Answered when what it is about has been answered.
  int Flush(Call* call) {
    const auto tag = call->in.Get<uint16_t>();
    if (!call->in.ok()) return EINVAL;
    for (const Op& op : ops_) {
      if (op.file == nullptr || op.tag != tag) continue;
      host().Cancel(0, op.index);
      call->out.PutAt(0, call->out.size());
      flushes_.emplace_back(tag, std::move(call->request));
      return 0;
    }
    return 0;
  }
  void EndFlushes(uint16_t tag) {
    for (auto& [old_tag, request] : flushes_) {
      if (old_tag == tag) request.Complete(p9::kHeader);
    }
    std::erase_if(flushes_, [tag](const auto& flush) { return flush.first == tag; });
  }

  // ---- files ------------------------------------------------------------------------------------

  int Lopen(Call* call) {
    File* const file = Find(call->in.U32());
    const uint32_t flags = call->in.U32();
    if (!call->in.ok() || file == nullptr) return EBADF;
    if (file->io) return EINVAL;
    const bool changes = (flags & 3) != 0 || (flags & 01000) != 0;
    if (changes && readonly_) return EROFS;
    const int fd = Counted([&] { return tree_.Reopen(*file, flags); });
    if (fd < 0) return -fd;
    file->io.Reset(fd);
    file->flags = flags;
    return OpenReply(call, *file);
  }

  int Lcreate(Call* call) {
    File* const file = Find(call->in.U32());
    const std::string_view name = call->in.Text();
    const uint32_t flags = call->in.U32();
    const uint32_t mode = call->in.U32();
    const uint32_t gid = call->in.U32();
    if (!call->in.ok() || file == nullptr) return EBADF;
    if (file->io) return EINVAL;
    if (readonly_) return EROFS;
    const int fd = Counted([&] { return tree_.Create(*file, name, flags, mode); });
    if (fd < 0) return -fd;
    sdk::UniqueFd opened(fd);
    sdk::UniqueFd path(tree_.Walk(*file, name));
    if (!path) {
      host().GiveDescriptor();
      return -path.get();
    }
    // The fid is the file's from here on; its count of descriptors is one more.
    file->path = std::move(path);
    file->io = std::move(opened);
    file->flags = flags;
    Tree::Settle(*file, mode, file->uid, gid);
    return OpenReply(call, *file);
  }

  int OpenReply(Call* call, const File& file) {
    struct stat st;
    if (fstat(file.io.get(), &st) != 0) return errno;
    call->out.Id(Tree::QidOf(st));
    call->out.U32(0);  // iounit: as much as fits
    return 0;
  }

  int Transfer(Call* call) {
    const bool read = call->type == p9::kTread;
    File* const file = Find(call->in.U32());
    const uint64_t offset = call->in.U64();
    uint32_t count = call->in.U32();
    if (!call->in.ok() || file == nullptr || !file->io) return EBADF;
    if (read) {
      count = std::min({count, call->request.out_total() - p9::kReadData, msize_ - p9::kReadData});
    } else if (count > call->request.in_total() - p9::kWriteData) {
      return EINVAL;
    }
    if (offset > uint64_t{INT64_MAX} - count) return EINVAL;
    if (count == 0) {
      Answer(std::move(call->request), call->type, call->tag, 0);
      return 0;
    }
    const int64_t n = read ? call->request.ReadNow(file->io.get(), offset, p9::kReadData, count)
                           : call->request.WriteNow(file->io.get(), offset, p9::kWriteData, count);
    if (n == -EAGAIN || n == -EOPNOTSUPP || n == -EINTR) return BeginIo(call, file, offset, count);
    if (n < 0) return static_cast<int>(-n);
    Answer(std::move(call->request), call->type, call->tag, n);
    return 0;
  }

  int Fsync(Call* call) {
    File* const file = Find(call->in.U32());
    const uint32_t data_only = call->in.U32();
    if (!call->in.ok() || file == nullptr || !file->io) return EBADF;
    return BeginIo(call, file, data_only != 0 ? 1 : 0, 0);
  }

  int BeginIo(Call* call, File* file, uint64_t offset, uint32_t count) {
    Op& op = ops_[call->request.head()];
    op = Op{.file = file,
            .tag = call->tag,
            .type = call->type,
            .count = count,
            .offset = offset,
            .index = call->request.head()};
    ++file->uses;
    Submit(&op, std::move(call->request));
    return 0;
  }

  void Submit(Op* op, Request request) {
    virtbay_io io = {};
    io.struct_size = sizeof(io);
    io.fd = op->file->io.get();
    io.request = request.get();
    io.cookie = op->index;
    if (op->type == p9::kTfsync) {
      io.op = VIRTBAY_IO_FSYNC;
      io.arg = static_cast<uint32_t>(op->offset);
    } else {
      io.op = op->type == p9::kTread ? VIRTBAY_IO_READ : VIRTBAY_IO_WRITE;
      io.payload_offset = op->type == p9::kTread ? p9::kReadData : p9::kWriteData;
      io.payload_len = op->count;
      io.file_offset = op->offset;
    }
    if (host().Submit(&io, 1).ok()) {
      request.Release();
      return;
    }
    Unref(std::exchange(op->file, nullptr));
    Answer(std::move(request), op->type, op->tag, -EIO);
    EndFlushes(op->tag);
  }

  int Readdir(Call* call) {
    File* const file = Find(call->in.U32());
    const uint64_t offset = call->in.U64();
    const uint32_t count = std::min({call->in.U32(), kMaxListing, msize_ - p9::kReadData,
                                     call->request.out_total() - p9::kReadData});
    if (!call->in.ok() || file == nullptr || !file->io) return EBADF;
    if (offset > INT64_MAX) return EINVAL;
    struct stat st, root;
    if (fstat(file->io.get(), &st) != 0 || fstat(tree_.root().get(), &root) != 0) return errno;
    if (!call->request.Reserve(p9::kReadData + count)) return ENOMEM;
    StartReply(call, p9::kReadData + count);
    call->out.U32(0);
    if (file->at != offset && lseek(file->io.get(), static_cast<off_t>(offset), SEEK_SET) < 0) {
      return errno;
    }
    file->at = UINT64_MAX;  // unless everything that is read now is told
    const bool at_root = st.st_ino == root.st_ino;
    alignas(dirent64) char bytes[8192];
    for (uint64_t place = offset;;) {
      const ssize_t n = getdents64(file->io.get(), bytes, sizeof(bytes));
      if (n < 0) return errno;
      if (n == 0) {
        file->at = place;
        break;
      }
      ssize_t done = 0;
      while (done < n) {
        const auto* entry = reinterpret_cast<const dirent64*>(bytes + done);
        const std::string_view name(entry->d_name);
        if (call->out.room() < p9::kQidSize + 8 + 1 + 2 + name.size()) break;
        p9::Qid qid;
        // The root has nothing above it, to the guest.
        qid.path = at_root && name == ".." ? st.st_ino : entry->d_ino;
        qid.type = entry->d_type == DT_DIR ? 0x80 : entry->d_type == DT_LNK ? 0x02 : 0;
        call->out.Id(qid);
        call->out.U64(static_cast<uint64_t>(entry->d_off));
        call->out.Put(entry->d_type);
        call->out.Text(name);
        place = static_cast<uint64_t>(entry->d_off);
        done += entry->d_reclen;
      }
      if (done < n) break;
    }
    // Room for not even one name is the client's mistake, and would look like the end.
    if (call->out.size() == p9::kReadData && file->at == UINT64_MAX) return EINVAL;
    call->out.PutAt(p9::kHeader, call->out.size() - p9::kReadData);
    return 0;
  }

  // ---- attributes -------------------------------------------------------------------------------

  int Getattr(Call* call) {
    const File* const file = Find(call->in.U32());
    call->in.U64();  // what is asked for
    struct stat st;
    if (!call->in.ok() || file == nullptr) return EBADF;
    if (fstat(file->path.get(), &st) != 0) return errno;
    Writer& out = call->out;
    out.U64(kBasicStats);
    out.Id(Tree::QidOf(st));
    out.U32(st.st_mode);
    out.U32(st.st_uid);
    out.U32(st.st_gid);
    out.U64(st.st_nlink);
    out.U64(st.st_rdev);
    out.U64(static_cast<uint64_t>(st.st_size));
    out.U64(static_cast<uint64_t>(st.st_blksize));
    out.U64(static_cast<uint64_t>(st.st_blocks));
    for (const timespec& time : {st.st_atim, st.st_mtim, st.st_ctim}) {
      out.U64(static_cast<uint64_t>(time.tv_sec));
      out.U64(static_cast<uint64_t>(time.tv_nsec));
    }
    for (int i = 0; i < 4; ++i) out.U64(0);  // birth time, generation, data version
    return 0;
  }

  int Setattr(Call* call) {
    enum : uint32_t {
      kMode = 1,
      kUid = 2,
      kGid = 4,
      kSize = 8,
      kAtime = 16,
      kMtime = 32,
      kAtimeSet = 128,
      kMtimeSet = 256
    };
    Reader& in = call->in;
    const File* const file = Find(in.U32());
    const uint32_t valid = in.U32();
    const uint32_t mode = in.U32();
    const uint32_t uid = in.U32();
    const uint32_t gid = in.U32();
    const uint64_t size = in.U64();
    timespec times[2] = {};
    for (timespec& time : times) {
      time.tv_sec = static_cast<time_t>(in.U64());
      time.tv_nsec = static_cast<long>(in.U64());
      if (in.ok() && (time.tv_nsec < 0 || time.tv_nsec > 999'999'999)) return EINVAL;
    }
    struct stat st;
    if (!in.ok() || file == nullptr) return EBADF;
    if (readonly_) return EROFS;
    if (fstat(file->path.get(), &st) != 0) return errno;
    const std::string name = Tree::ProcName(*file);
    if ((valid & kSize) != 0) {
      // Another kind of file might wait, or do something.
      if (!S_ISREG(st.st_mode) || size > INT64_MAX) return EINVAL;
      if (truncate(name.c_str(), static_cast<off_t>(size)) != 0) return errno;
    }
    if ((valid & (kUid | kGid)) != 0 &&
        fchownat(file->path.get(), "", (valid & kUid) != 0 ? uid : UINT32_MAX,
                 (valid & kGid) != 0 ? gid : UINT32_MAX, AT_EMPTY_PATH) != 0) {
      return errno;
    }
    if ((valid & kMode) != 0 && chmod(name.c_str(), mode & 07777) != 0) return errno;
    if ((valid & (kAtime | kMtime)) == 0) return 0;
    if ((valid & kAtimeSet) == 0) times[0].tv_nsec = UTIME_NOW;
    if ((valid & kMtimeSet) == 0) times[1].tv_nsec = UTIME_NOW;
    if ((valid & kAtime) == 0) times[0].tv_nsec = UTIME_OMIT;
    if ((valid & kMtime) == 0) times[1].tv_nsec = UTIME_OMIT;
    return utimensat(AT_FDCWD, name.c_str(), times, 0) == 0 ? 0 : errno;
  }

  int Statfs(Call* call) {
    const File* const file = Find(call->in.U32());
    struct statfs fs;
    if (!call->in.ok() || file == nullptr) return EBADF;
    if (fstatfs(file->path.get(), &fs) != 0) return errno;
    call->out.U32(kMagic);
    call->out.U32(static_cast<uint32_t>(fs.f_bsize));
    for (const uint64_t value :
         {static_cast<uint64_t>(fs.f_blocks), static_cast<uint64_t>(fs.f_bfree),
          static_cast<uint64_t>(fs.f_bavail), static_cast<uint64_t>(fs.f_files),
          static_cast<uint64_t>(fs.f_ffree)}) {
      call->out.U64(value);
    }
    uint64_t id = 0;
    std::memcpy(&id, &fs.f_fsid, sizeof(id));
    call->out.U64(id);
    call->out.U32(static_cast<uint32_t>(p9::kMaxName));
    return 0;
  }

  int Readlink(Call* call) {
    const File* const file = Find(call->in.U32());
    char target[PATH_MAX];
    if (!call->in.ok() || file == nullptr) return EBADF;
    const ssize_t n = readlinkat(file->path.get(), "", target, sizeof(target));
    if (n < 0) return errno == ENOENT ? EINVAL : errno;
    if (!call->request.Reserve(p9::kHeader + 2 + static_cast<uint32_t>(n))) return EMSGSIZE;
    StartReply(call);
    call->out.Text({target, static_cast<size_t>(n)});
    return 0;
  }

  // ---- names ------------------------------------------------------------------------------------

  int Make(Call* call) {
    Reader& in = call->in;
    const File* const directory = Find(in.U32());
    const std::string name(in.Text());
    std::string target;
    uint32_t mode = 0;
    if (call->type == p9::kTsymlink) {
      target = in.Text();
    } else {
      mode = in.U32();
    }
    if (call->type == p9::kTmknod) in.U64();  // major, minor
    const uint32_t gid = in.U32();
    if (!in.ok() || directory == nullptr) return EBADF;
    if (const int error = p9::CheckName(name)) return error;
    if (target.find('\0') != target.npos) return EINVAL;
    if (readonly_) return EROFS;
    const int at = directory->path.get();
    int result = 0;
    if (call->type == p9::kTsymlink) {
      result = symlinkat(target.c_str(), at, name.c_str());
    } else if (call->type == p9::kTmkdir) {
      result = mkdirat(at, name.c_str(), mode & 07777);
    } else {
      // A device of the guest's must not be one of the host's.
      if (!S_ISREG(mode) && !S_ISFIFO(mode) && !S_ISSOCK(mode)) return EPERM;
      result = mknodat(at, name.c_str(), (mode & S_IFMT) | (mode & 07777), 0);
    }
    if (result != 0) return errno;
    File made;
    made.path.Reset(tree_.Walk(*directory, name));
    if (!made.path) return -made.path.get();
    Tree::Settle(made, mode, directory->uid, gid);
    struct stat st;
    if (fstat(made.path.get(), &st) != 0) return errno;
    call->out.Id(Tree::QidOf(st));
    return 0;
  }

  int Link(Call* call) {
    const File* const directory = Find(call->in.U32());
    const File* const file = Find(call->in.U32());
    const std::string name(call->in.Text());
    if (!call->in.ok() || directory == nullptr || file == nullptr) return EBADF;
    if (const int error = p9::CheckName(name)) return error;
    if (readonly_) return EROFS;
    return linkat(AT_FDCWD, Tree::ProcName(*file).c_str(), directory->path.get(), name.c_str(),
                  AT_SYMLINK_FOLLOW) == 0
               ? 0
               : errno;
  }

  int Rename(Call* call) {
    const File* const from = Find(call->in.U32());
    const std::string old_name(call->in.Text());
    const File* const to = Find(call->in.U32());
    const std::string new_name(call->in.Text());
    if (!call->in.ok() || from == nullptr || to == nullptr) return EBADF;
    if (const int error = p9::CheckName(old_name)) return error;
    if (const int error = p9::CheckName(new_name)) return error;
    if (readonly_) return EROFS;
    return renameat(from->path.get(), old_name.c_str(), to->path.get(), new_name.c_str()) == 0
               ? 0
               : errno;
  }

  int Unlink(Call* call) {
    const File* const directory = Find(call->in.U32());
    const std::string name(call->in.Text());
    const uint32_t flags = call->in.U32();
    if (!call->in.ok() || directory == nullptr) return EBADF;
    if (const int error = p9::CheckName(name)) return error;
    if (readonly_) return EROFS;
    const int how = (flags & 0x200) != 0 ? AT_REMOVEDIR : 0;
    return unlinkat(directory->path.get(), name.c_str(), how) == 0 ? 0 : errno;
  }

  // ---- record locks -----------------------------------------------------------------------------

  // The range of Tlock and Tgetlock. Locks are those of the open file: a fid each.
  static bool ReadRange(Reader* in, uint8_t type, struct flock* lock) {
    static constexpr short kTypes[] = {F_RDLCK, F_WRLCK, F_UNLCK};
    const uint64_t start = in->U64();
    const uint64_t length = in->U64();
    in->U32();   // process
    in->Text();  // client
    if (!in->ok() || type >= std::size(kTypes) || start > INT64_MAX || length > INT64_MAX) {
      return false;
    }
    lock->l_type = kTypes[type];
    lock->l_whence = SEEK_SET;
    lock->l_start = static_cast<off_t>(start);
    lock->l_len = static_cast<off_t>(length);
    return true;
  }

  int Lock(Call* call) {
    const File* const file = Find(call->in.U32());
    const auto type = call->in.Get<uint8_t>();
    call->in.U32();  // whether it waits: the client asks again
    struct flock lock = {};
    if (!ReadRange(&call->in, type, &lock)) return EINVAL;
    if (file == nullptr || !file->io) return EBADF;
    const bool taken = fcntl(file->io.get(), F_OFD_SETLK, &lock) == 0;
    if (!taken && errno != EAGAIN && errno != EACCES) return errno;
    call->out.Put(static_cast<uint8_t>(taken ? 0 : 1));
    return 0;
  }

  int Getlock(Call* call) {
    const File* const file = Find(call->in.U32());
    const auto type = call->in.Get<uint8_t>();
    struct flock lock = {};
    if (!ReadRange(&call->in, type, &lock)) return EINVAL;
    if (file == nullptr || !file->io) return EBADF;
    if (fcntl(file->io.get(), F_OFD_GETLK, &lock) != 0) return errno;
    call->out.Put(static_cast<uint8_t>(lock.l_type == F_UNLCK   ? 2
                                       : lock.l_type == F_WRLCK ? 1
                                                                : 0));
    call->out.U64(static_cast<uint64_t>(lock.l_start));
    call->out.U64(static_cast<uint64_t>(lock.l_len));
    call->out.U32(0);  // an open file has no process
    call->out.Text("");
    return 0;
  }

  Tree tree_;
  std::string tag_;
  bool readonly_ = false;
  uint32_t most_ = 256 * 1024;  // of an msize
  uint32_t msize_ = 0;          // of the session; 0: there is none
  std::unordered_map<uint32_t, File*> fids_;
  std::vector<Op> ops_;
  std::vector<std::pair<uint16_t, Request>> flushes_;
  uint64_t* read_ = nullptr;
  uint64_t* written_ = nullptr;
  uint64_t* errors_ = nullptr;
  uint64_t* fid_count_ = nullptr;
};

}  // namespace

VIRTBAY_PLUGIN(NineP, "virtio-9p", kVirtioId9p, 0);
