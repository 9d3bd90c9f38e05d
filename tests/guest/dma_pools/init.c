// /init of the arm64 guest of the dma_pools suite: mounts the shares that the kernel's command line
// names, works on them, and tells the console. Static; a process per share, this one waits.
//   vb_good=TAG,TAG     shares that must work, all at the same time
//   vb_refused=TAG,TAG  shares whose device is refused by its back-end: nothing may answer
//   vb_patience=S       how long nothing may answer
//   vb_pools=N          restricted DMA pools that devices have been given
//   vb_platform=N       devices whose driver has accepted VIRTIO_F_ACCESS_PLATFORM
//   vb_report=TARGET    where /virtbay-guest reports the pools
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { kMaxTags = 8, kSmallFiles = 50, kAccessPlatform = 33 };
// One call, which the guest's kernel has to cut into what it can map.
static const size_t kPiece = 1 << 20;

// One line in one write, so that the lines of several processes do not mix.
static void Say(const char* format, ...) {
  char line[512];
  va_list args;
  va_start(args, format);
  int length = vsnprintf(line, sizeof line - 1, format, args);
  va_end(args);
  if (length < 0) return;
  if (length > (int)sizeof line - 2) length = (int)sizeof line - 2;
  line[length++] = '\n';
  if (write(STDOUT_FILENO, line, (size_t)length) < 0) return;
}

static bool Result(bool good, const char* tag, const char* what) {
  const int error = errno;
  if (good) {
    Say("@@PASS %s: %s", tag, what);
  } else {
    Say("@@FAIL %s: %s (errno %d, %s)", tag, what, error, strerror(error));
  }
  errno = 0;
  return good;
}

// What cksum(1) prints (POSIX).
static uint32_t Checksum(const uint8_t* data, size_t size) {
  uint32_t table[256];
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i << 24;
    for (int bit = 0; bit < 8; ++bit) value = (value << 1) ^ ((value >> 31) * 0x04c11db7u);
    table[i] = value;
  }
  uint32_t sum = 0;
  for (size_t i = 0; i < size; ++i) sum = (sum << 8) ^ table[(sum >> 24) ^ data[i]];
  for (size_t left = size; left != 0; left >>= 8) {
    sum = (sum << 8) ^ table[(sum >> 24) ^ (left & 0xff)];
  }
  return ~sum;
}

// The whole file into `data`, a piece a call; its size, or 0.
static size_t ReadFile(const char* path, int flags, uint8_t* data, size_t capacity) {
  const int fd = open(path, O_RDONLY | flags);
  if (fd < 0) return 0;
  size_t size = 0;
  for (;;) {
    const size_t room = capacity - size;
    const ssize_t n = read(fd, data + size, room < kPiece ? room : kPiece);
    if (n <= 0) {
      close(fd);
      return n < 0 ? 0 : size;
    }
    size += (size_t)n;
  }
}

static bool WriteFile(const char* path, int flags, const uint8_t* data, size_t size) {
  const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | flags, 0644);
  if (fd < 0) return false;
  for (size_t at = 0; at < size;) {
    const size_t left = size - at;
    const ssize_t n = write(fd, data + at, left < kPiece ? left : kPiece);
    if (n <= 0) {
      close(fd);
      return false;
    }
    at += (size_t)n;
  }
  return fsync(fd) == 0 && close(fd) == 0;
}

static void PutText(const char* path, const char* text) {
  const int fd = open(path, O_WRONLY);
  if (fd < 0) return;
  if (write(fd, text, strlen(text)) < 0) Say("@@LOG %s: errno %d", path, errno);
  close(fd);
}

static bool GetText(const char* path, char* text, size_t capacity) {
  const int fd = open(path, O_RDONLY);
  if (fd < 0) return false;
  const ssize_t n = read(fd, text, capacity - 1);
  close(fd);
  text[n < 0 ? 0 : n] = '\0';
  return n >= 0;
}

static bool MountShare(const char* tag, char* dir, size_t capacity) {
  snprintf(dir, capacity, "/mnt/%s", tag);
  mkdir("/mnt", 0755);
  mkdir(dir, 0755);
  return mount(tag, dir, "virtiofs", 0, NULL) == 0;
}

// Same bytes as the host's, read again from the host and not from the guest's cache.
static bool Same(const char* path, int flags, const uint8_t* data, size_t size, uint8_t* scratch,
                 size_t capacity) {
  PutText("/proc/sys/vm/drop_caches", "3");
  return ReadFile(path, flags, scratch, capacity) == size && memcmp(scratch, data, size) == 0;
}

static bool SmallFiles(const char* dir) {
  char path[128];
  uint8_t data[kSmallFiles * 137];
  uint8_t back[sizeof data];
  snprintf(path, sizeof path, "%s/small", dir);
  if (mkdir(path, 0755) != 0) return false;
  for (size_t i = 0; i < kSmallFiles; ++i) {
    memset(data, (int)i + 1, sizeof data);
    snprintf(path, sizeof path, "%s/small/%zu", dir, i);
    if (!WriteFile(path, 0, data, i * 137)) return false;
  }
  snprintf(path, sizeof path, "%s/small", dir);
  DIR* list = opendir(path);
  if (list == NULL) return false;
  size_t count = 0;
  for (const struct dirent* entry; (entry = readdir(list)) != NULL;)
    count += entry->d_name[0] != '.';
  closedir(list);
  if (count != kSmallFiles) return false;
  for (size_t i = 0; i < kSmallFiles; ++i) {
    memset(data, (int)i + 1, sizeof data);
    snprintf(path, sizeof path, "%s/small/%zu", dir, i);
    if (ReadFile(path, 0, back, sizeof back) != i * 137 || memcmp(data, back, i * 137) != 0) {
      return false;
    }
  }
  return true;
}

// A share that works. The host has put `data` there and, in `sum`, what cksum says of it.
static int Use(const char* tag) {
  const size_t capacity = (size_t)64 << 20;
  char dir[64];
  char path[128];
  char text[64];
  uint8_t* data = NULL;
  uint8_t* scratch = NULL;
  if (posix_memalign((void**)&data, 4096, capacity) != 0 ||
      posix_memalign((void**)&scratch, 4096, capacity) != 0) {
    return !Result(false, tag, "memory");
  }
  if (!Result(MountShare(tag, dir, sizeof dir), tag, "mount")) return 1;
  snprintf(path, sizeof path, "%s/data", dir);
  const size_t size = ReadFile(path, 0, data, capacity);
  unsigned long sum = 0;
  size_t wanted = 0;
  snprintf(path, sizeof path, "%s/sum", dir);
  bool good = size > kPiece && GetText(path, text, sizeof text) &&
              sscanf(text, "%lu %zu", &sum, &wanted) == 2 && wanted == size &&
              Checksum(data, size) == (uint32_t)sum;
  if (!Result(good, tag, "reads the host's file, 1 MiB a call")) return 1;
  snprintf(path, sizeof path, "%s/data", dir);
  good = Same(path, O_DIRECT, data, size, scratch, capacity);
  Result(good, tag, "reads it without the cache, 1 MiB a call");
  snprintf(path, sizeof path, "%s/copy", dir);
  good = WriteFile(path, 0, data, size) && Same(path, 0, data, size, scratch, capacity);
  Result(good, tag, "writes a copy and reads it back");
  snprintf(path, sizeof path, "%s/direct", dir);
  good =
      WriteFile(path, O_DIRECT, data, size) && Same(path, O_DIRECT, data, size, scratch, capacity);
  Result(good, tag, "writes a copy without the cache, 1 MiB a call");
  Result(SmallFiles(dir), tag, "50 small files");
  return 0;
}

// A share whose device is refused: whoever looks at it waits for ever. 0 when something answered.
static int Try(const char* tag) {
  char dir[64];
  struct stat info;
  if (!MountShare(tag, dir, sizeof dir)) return 1;
  return stat(dir, &info) == 0 ? 0 : 1;
}

static int Split(const char* name, char* storage, size_t capacity, const char** tags) {
  const char* value = getenv(name);
  int count = 0;
  snprintf(storage, capacity, "%s", value == NULL ? "" : value);
  for (char* tag = strtok(storage, ","); tag != NULL && count < kMaxTags; tag = strtok(NULL, ",")) {
    tags[count++] = tag;
  }
  return count;
}

static long Number(const char* name) {
  const char* value = getenv(name);
  return value == NULL ? 0 : strtol(value, NULL, 10);
}

// What the kernel's log says of the pools, and whether the kernel complains; the console does not
// show it, because its lines would fall into ours.
static void CheckLog(void) {
  static char log[1 << 18];
  const int length = klogctl(3, log, sizeof log - 1);  // read all
  if (length <= 0) return;
  log[length] = '\0';
  for (char* line = strtok(log, "\n"); line != NULL; line = strtok(NULL, "\n")) {
    if (strstr(line, "BUG:") || strstr(line, "WARNING:") || strstr(line, "Oops")) {
      Say("@@FAIL guest: %s", line);
    } else if (strstr(line, "restricted DMA pool") || strstr(line, "reserved memory node")) {
      Say("@@LOG %s", line);
    }
  }
}

// The kernel keeps a debugfs directory for each pool that a device has been given.
static void CheckPools(void) {
  char path[300];
  char text[64] = "";
  DIR* root = opendir("/sys/kernel/debug");
  long count = 0;
  for (const struct dirent* entry; root != NULL && (entry = readdir(root)) != NULL;) {
    if (strncmp(entry->d_name, "dmapool@", 8) != 0) continue;
    ++count;
    snprintf(path, sizeof path, "/sys/kernel/debug/%s/io_tlb_used", entry->d_name);
    GetText(path, text, sizeof text);
    Say("@@LOG %s: %ld slots in use", entry->d_name, strtol(text, NULL, 10));
  }
  if (root != NULL) closedir(root);
  Result(count == Number("vb_pools"), "guest", "devices have the pools they should have");
}

// The guest's own program tells the host of the pools, and the host accepts it.
static void Report(void) {
  char text[128];
  const char* targets[kMaxTags];
  if (Split("vb_report", text, sizeof text, targets) == 0) return;
  const pid_t pid = fork();
  if (pid == 0) {
    execl("/virtbay-guest", "virtbay-guest", "--json", "--send", targets[0], NULL);
    _exit(127);
  }
  int ended = 0;
  waitpid(pid, &ended, 0);
  Result(WIFEXITED(ended) && WEXITSTATUS(ended) == 0, "guest", "the host takes the report");
}

static void CheckFeatures(void) {
  char path[300];
  char text[128] = "";
  DIR* devices = opendir("/sys/bus/virtio/devices");
  long count = 0;
  for (const struct dirent* entry; devices != NULL && (entry = readdir(devices)) != NULL;) {
    if (entry->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "/sys/bus/virtio/devices/%s/features", entry->d_name);
    count += GetText(path, text, sizeof text) && strlen(text) > kAccessPlatform &&
             text[kAccessPlatform] == '1';
  }
  if (devices != NULL) closedir(devices);
  Result(count == Number("vb_platform"), "guest", "drivers accepted ACCESS_PLATFORM where offered");
}

// Lets the host look at its side while everything is still running.
static void AskHost(void) {
  char answer[16] = "";
  Say("@@HOST look");
  if (fgets(answer, sizeof answer, stdin) == NULL || strncmp(answer, "ok", 2) != 0) {
    Result(false, "guest", "the host's side");
  }
}

int main(void) {
  mkdir("/proc", 0755);
  mkdir("/sys", 0755);
  mount("proc", "/proc", "proc", 0, NULL);
  mount("sys", "/sys", "sysfs", 0, NULL);
  mount("debug", "/sys/kernel/debug", "debugfs", 0, NULL);
  mkdir("/dev", 0755);
  mount("dev", "/dev", "devtmpfs", 0, NULL);
  struct termios terminal;
  if (tcgetattr(STDIN_FILENO, &terminal) == 0) {
    terminal.c_lflag &= ~(tcflag_t)ECHO;
    tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
  }
  // What the firmware left on the line.
  Say("%s", "");
  errno = 0;

  char good_names[128];
  char refused_names[128];
  const char* good[kMaxTags];
  const char* refused[kMaxTags];
  const int good_count = Split("vb_good", good_names, sizeof good_names, good);
  const int refused_count = Split("vb_refused", refused_names, sizeof refused_names, refused);
  pid_t good_pids[kMaxTags];
  pid_t refused_pids[kMaxTags];
  const time_t begin = time(NULL);
  for (int i = 0; i < refused_count; ++i) {
    refused_pids[i] = fork();
    if (refused_pids[i] == 0) _exit(Try(refused[i]));
  }
  for (int i = 0; i < good_count; ++i) {
    good_pids[i] = fork();
    if (good_pids[i] == 0) _exit(Use(good[i]));
  }
  int status = good_count == 0 && refused_count == 0;
  for (int i = 0; i < good_count; ++i) {
    int ended = 0;
    waitpid(good_pids[i], &ended, 0);
    if (ended != 0) status = 1;
  }
  while (refused_count > 0 && time(NULL) - begin < Number("vb_patience")) usleep(100000);
  for (int i = 0; i < refused_count; ++i) {
    int ended = 0;
    const bool gone = waitpid(refused_pids[i], &ended, WNOHANG) == refused_pids[i];
    Result(!gone || !WIFEXITED(ended) || WEXITSTATUS(ended) != 0, refused[i], "nothing answers");
  }
  CheckLog();
  CheckPools();
  CheckFeatures();
  Report();
  AskHost();
  // Shares that nobody serves can be neither synchronised nor unmounted.
  for (int i = 0; i < good_count; ++i) {
    char dir[64];
    snprintf(dir, sizeof dir, "/mnt/%s", good[i]);
    Result(umount(dir) == 0, good[i], "umount");
  }
  Say("@@DONE %d", status);
  tcdrain(STDOUT_FILENO);
  reboot(RB_POWER_OFF);
  return 1;
}
