#include "hostif/testkit/child.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <exception>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

namespace virtbay::testkit {
namespace {

// A message is a letter and a text of one line.
void Tell(int fd, char kind, absl::string_view text) {
  std::string line(1, kind);
  for (const char c : text) line.push_back(c == '\n' || c == '\r' ? ' ' : c);
  line.push_back('\n');
  for (size_t done = 0; done < line.size();) {
    const ssize_t n = write(fd, line.data() + done, line.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    done += static_cast<size_t>(n);
  }
}

char Letter(Verdict verdict) {
  switch (verdict) {
    case Verdict::kPass:
      return 'P';
    case Verdict::kSkip:
      return 'S';
    default:
      return 'F';
  }
}

[[noreturn]] void RunChild(int fd, const std::function<Finding(const Notes&)>& run) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  // What a plugin prints is not the result's.
  dup2(STDERR_FILENO, STDOUT_FILENO);
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null >= 0) dup2(null, STDIN_FILENO);
  Finding finding;
  try {
    finding = run(Notes(fd));
  } catch (const std::exception& e) {
    finding = {Verdict::kFail, absl::StrCat("exception: ", e.what())};
  }
  Tell(fd, Letter(finding.verdict), finding.text);
  // Not exit(): the parent's buffers and exit functions are not this process's.
  _exit(0);
}

// All that comes through the pipe until its end or the deadline; false: the deadline.
bool ReadAll(int fd, absl::Time deadline, std::string* all) {
  char bytes[4096];
  for (;;) {
    pollfd look{.fd = fd, .events = POLLIN, .revents = 0};
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0) return false;
    if (poll(&look, 1, static_cast<int>(left)) <= 0) continue;
    const ssize_t n = read(fd, bytes, sizeof(bytes));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return true;
    all->append(bytes, static_cast<size_t>(n));
    // The verdict is the last word: what the plugin left running does not matter any more.
    if (all->find("\nP") != all->npos || all->find("\nF") != all->npos ||
        all->find("\nS") != all->npos) {
      if (all->back() == '\n') return true;
    }
  }
}

}  // namespace

void Notes::operator()(absl::string_view doing) const { Tell(fd_, 'N', doing); }

Finding InChild(absl::Duration limit, const std::function<Finding(const Notes&)>& run) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {Verdict::kFail, absl::StrCat("pipe: ", strerror(errno))};
  UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  const pid_t pid = fork();
  if (pid < 0) return {Verdict::kFail, absl::StrCat("fork: ", strerror(errno))};
  if (pid == 0) {
    reader.reset();
    RunChild(writer.get(), run);
  }
  setpgid(pid, pid);
  writer.reset();
  std::string all = "\n";
  const bool ended = ReadAll(reader.get(), absl::Now() + limit, &all);
  // What has said its verdict ends by itself; everything else of its group is ended.
  siginfo_t info{};
  if (ended && all.back() == '\n' && all.size() > 1) {
    // Give the end of the process, which is under way, a moment: its status tells a crash.
    waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT);
  }
  kill(-pid, SIGKILL);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;

  Finding finding{Verdict::kFail, ""};
  bool said = false;
  std::string doing = "nothing";
  for (const absl::string_view line : absl::StrSplit(all, '\n', absl::SkipEmpty())) {
    const std::string text(line.substr(1));
    if (line[0] == 'N') doing = text;
    if (line[0] != 'P' && line[0] != 'F' && line[0] != 'S') continue;
    said = true;
    finding = {line[0] == 'P'   ? Verdict::kPass
               : line[0] == 'S' ? Verdict::kSkip
                                : Verdict::kFail,
               text};
  }
  if (said) return finding;
  if (!ended) {
    finding.text =
        absl::StrCat("does not come back from: ", doing, " (", absl::FormatDuration(limit), ")");
  } else if (WIFSIGNALED(status)) {
    finding.text = absl::StrCat("ended by SIG", sigabbrev_np(WTERMSIG(status)), " in: ", doing);
  } else {
    finding.text =
        absl::StrCat("the process ended with status ", WEXITSTATUS(status), " in: ", doing);
  }
  return finding;
}

}  // namespace virtbay::testkit
