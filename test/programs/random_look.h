// What can be seen of tasks from outside without changing them: descriptors through copies (pidfd_getfd), which of them are one
// open file (kcmp), and memory. Texts of /proc are read by the test itself.
#pragma once
#include "random_waits.h"
#include <linux/kcmp.h>
#include <linux/sockios.h>

struct opened {
  int task, fd, copy, group;
};
static struct opened opened[4000];
static int opened_count, group_count;

static long pidfd_of(pid_t pid) { return syscall(SYS_pidfd_open, pid, 0); }

// All descriptors of the tasks, with the same group for those that are one open file.
static void take_descriptors(int count, char **pids) {
  static int heads[4000];
  for (int task = 0; task < count; task++) {
    char path[64];
    pid_t pid = atoi(pids[task]);
    int pidfd = (int)pidfd_of(pid);
    for (int fd = 0; fd < 256 && pidfd >= 0; fd++) {
      snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
      struct stat stat;
      if (lstat(path, &stat) == -1) continue;
      struct opened *one = &opened[opened_count];
      *one = (struct opened){task, fd, (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0), -1};
      for (int i = 0; i < group_count && one->group < 0; i++) {
        struct opened *head = &opened[heads[i]];
        if (syscall(SYS_kcmp, pid, atoi(pids[head->task]), KCMP_FILE, fd, head->fd) == 0) one->group = i;
      }
      if (one->group < 0) heads[one->group = group_count++] = opened_count;
      opened_count++;
    }
    close(pidfd);
  }
}

static uint64_t hash_of(const void *bytes, size_t size) {
  uint64_t hash = 0xcbf29ce484222325;
  for (size_t i = 0; i < size; i++) hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3;
  return hash;
}

static void print_bytes(const char *prefix, const void *bytes, size_t size) {
  printf("%s", prefix);
  if (size > 80) printf("hash %016lx of %zu", hash_of(bytes, size), size);
  else
    for (size_t i = 0; i < size; i++) {
      unsigned char byte = ((const unsigned char *)bytes)[i];
      if (byte > ' ' && byte < 127 && byte != '\\') putchar(byte);
      else printf("\\%02x", byte);
    }
  putchar('\n');
}

static bool is_telling_option(int level, int option) {
  if (level == SOL_SOCKET) switch (option) {
  case SO_ERROR: case SO_PEERCRED: case SO_PEERSEC: case SO_PEERGROUPS: case SO_MEMINFO: case SO_COOKIE: case SO_INCOMING_NAPI_ID:
  case 77 /* SO_PEERPIDFD */: case SO_INCOMING_CPU: return false;
  }
  // What is left of a connection that failed; and an address, when it is bound to one, makes it V6ONLY.
  if (level == IPPROTO_IP && (option == IP_MTU || option == IP_MULTICAST_TTL || option == 52 /* IP_PROTOCOL */)) return false;
  if (level == IPPROTO_IPV6 && (option == IPV6_MTU || option == IPV6_PATHMTU || option == IPV6_V6ONLY)) return false;
  // What an accepted connection has from its first packet, without a use for it.
  if (level == IPPROTO_IPV6 && (option == IPV6_MULTICAST_IF || option == IPV6_MULTICAST_HOPS)) return false;
  if (level == IPPROTO_TCP) switch (option) {
  case TCP_INFO: case TCP_CC_INFO: case TCP_ZEROCOPY_RECEIVE: case TCP_TIMESTAMP: case TCP_SAVED_SYN: case TCP_QUICKACK: return false;
  }
  return true;
}

static void look_at_socket(const char *name, int fd) {
  static const int levels[] = {SOL_SOCKET, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_NETLINK, 263 /* SOL_PACKET */, 255 /* SOL_RAW */};
  char prefix[100], value[1024];
  for (size_t i = 0; i < COUNT(levels); i++)
    for (int option = 1; option < 110; option++) {
      socklen_t length = sizeof value;
      memset(value, 0, sizeof value);
      if (!is_telling_option(levels[i], option) || getsockopt(fd, levels[i], option, value, &length) == -1) continue;
      if (levels[i] == SOL_SOCKET && option == SO_LINGER && value[0] == 0) continue;
      snprintf(prefix, sizeof prefix, "%s option %d %d: ", name, levels[i], option);
      print_bytes(prefix, value, length);
    }
  struct sockaddr_storage address;
  socklen_t length = sizeof address;
  snprintf(prefix, sizeof prefix, "%s name: ", name);
  if (getsockname(fd, (struct sockaddr *)&address, &length) == 0) print_bytes(prefix, &address, length);
  length = sizeof address;
  snprintf(prefix, sizeof prefix, "%s peer: ", name);
  if (getpeername(fd, (struct sockaddr *)&address, &length) == 0) print_bytes(prefix, &address, length);
  struct tcp_info info = {0};
  int type = 0;
  length = sizeof type;
  getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length);
  length = sizeof info;
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0)
    printf("%s tcp: state %d options %x scales %d %d\n", name, info.tcpi_state, info.tcpi_options, info.tcpi_snd_wscale, info.tcpi_rcv_wscale);
  struct ucred user;
  length = sizeof user;
  if (type != SOCK_DGRAM && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &user, &length) == 0) printf("%s peer's user: %d %d\n", name, user.uid, user.gid);
}

static void look_at_terminal(const char *name, int fd) {
  char prefix[100];
  struct termios termios;
  struct winsize size;
  int value;
  if (tcgetattr(fd, &termios) == -1) return;
  snprintf(prefix, sizeof prefix, "%s termios: ", name);
  print_bytes(prefix, &termios, sizeof termios);
  if (ioctl(fd, TIOCGWINSZ, &size) == 0) printf("%s window: %d %d %d %d\n", name, size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel);
  static const unsigned long calls[] = {TIOCGPTN, TIOCGPTLCK, TIOCGPKT, TIOCGEXCL, TIOCGSID, TIOCGPGRP, TIOCGETD};
  for (size_t i = 0; i < COUNT(calls); i++)
    if (value = 0, ioctl(fd, calls[i], &value) == 0) printf("%s ioctl %lx: %d\n", name, calls[i], value);
}

static void look_at_descriptor(struct opened *one, pid_t pid) {
  char name[64], path[64];
  int fd = one->copy;
  snprintf(name, sizeof name, "task %d fd %d", one->task, one->fd);
  snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, one->fd);
  printf("%s group: %d\n", name, one->group);
  if (fd < 0) return;
  struct stat stat;
  fstat(fd, &stat);
  // A terminal that is hung up has no owner that anybody could ask.
  if (S_ISCHR(stat.st_mode) && stat.st_nlink == 0) stat.st_uid = stat.st_gid = 0;
  printf("%s stat: mode %o links %lu size %ld device %lx uid %d gid %d\n", name, stat.st_mode, S_ISDIR(stat.st_mode) ? 0 : (unsigned long)(stat.st_nlink > 0), S_ISDIR(stat.st_mode) ? 0 : (long)stat.st_size, stat.st_rdev, stat.st_uid, stat.st_gid);
  struct f_owner_ex owner = {0, 0};
  if (fcntl(fd, F_GETOWN_EX, &owner) == 0 && owner.pid != 0) printf("%s owner: %d %d\n", name, owner.type, owner.pid);
  printf("%s flags: %o\n", name, fcntl(fd, F_GETFL) & ~(S_ISREG(stat.st_mode) ? 020300000 : 020302000)); // O_TMPFILE has been done, O_LARGEFILE is always there
  printf("%s signal: %d\n", name, fcntl(fd, F_GETSIG));
  printf("%s lease: %d\n", name, fcntl(fd, F_GETLEASE));
  printf("%s seals: %d\n", name, fcntl(fd, F_GET_SEALS));
  printf("%s pipe size: %d\n", name, fcntl(fd, F_GETPIPE_SZ));
  int waiting = -1;
  // Nobody can read what lies in a pipe without readers; and what inotify has seen is lost.
  bool reads = !S_ISREG(stat.st_mode) && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_WRONLY && (stat.st_mode & S_IFMT) != 0;
  if (reads) ioctl(fd, FIONREAD, &waiting);
  printf("%s waiting: %d\n", name, waiting);
  struct pollfd ready = {fd, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
  poll(&ready, 1, 0);
  // How much a pipe takes depends on how its content came.
  if (S_ISFIFO(stat.st_mode)) ready.revents &= ready.revents & POLLERR ? POLLERR : ~POLLOUT;
  if ((stat.st_mode & S_IFMT) != 0 || fcntl(fd, F_GET_SEALS) >= 0) printf("%s ready: %x\n", name, ready.revents);
  if (S_ISSOCK(stat.st_mode)) look_at_socket(name, fd);
  if (S_ISCHR(stat.st_mode)) look_at_terminal(name, fd);
  if (S_ISREG(stat.st_mode) && stat.st_nlink == 0) {
    static char bytes[1 << 20];
    int again = open(path, O_RDONLY | O_NONBLOCK);
    ssize_t size = pread(again, bytes, sizeof bytes, 0);
    if (size >= 0) printf("%s content: %016lx of %zd\n", name, hash_of(bytes, (size_t)size), size);
    close(again);
  }
}

static void look_at_relations(int count, char **pids) {
  static const struct {
    const char *name;
    int type;
  } kinds[] = {{"memory", KCMP_VM}, {"descriptors", KCMP_FILES}, {"directories", KCMP_FS}, {"handlers", KCMP_SIGHAND}, {"io", KCMP_IO}, {"undo", KCMP_SYSVSEM}};
  for (int i = 0; i < count; i++)
    for (int j = 0; j < i; j++)
      for (size_t kind = 0; kind < COUNT(kinds); kind++)
        if (syscall(SYS_kcmp, atoi(pids[i]), atoi(pids[j]), kinds[kind].type, 0, 0) == 0 && kind != 5)
          printf("task %d has with %d: %s\n", i, j, kinds[kind].name);
}

// Each page that is not all zero, by its hash; areas that nobody reads are left out. The kernel writes into the rseq areas.
static void look_at_memory(int task, pid_t pid) {
  char path[64], line[1024];
  snprintf(path, sizeof path, "/proc/%d/mem", pid);
  int memory = open(path, O_RDONLY);
  snprintf(path, sizeof path, "/proc/%d/maps", pid);
  FILE *maps = fopen(path, "r");
  while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
    unsigned long start, end, offset = 0;
    char permissions[8] = "", name[100];
    if (sscanf(line, "%lx-%lx %7s %lx", &start, &end, permissions, &offset) < 2 || strstr(line, "[v") != NULL || strstr(line, "/page") != NULL) continue;
    if (strstr(line, "r-xp") != NULL && strstr(line, ".so") != NULL) continue;
    struct stat stat;
    snprintf(name, sizeof name, "/proc/%d/map_files/%lx-%lx", pid, start, end);
    bool shared = permissions[3] == 's' && strchr(line, '/') != NULL;
    unsigned long size = shared && fstatat(AT_FDCWD, name, &stat, 0) == 0 ? (unsigned long)stat.st_size : ~0UL;
    for (unsigned long at = start; at < end; at += PAGE) {
      static const unsigned char zeros[PAGE];
      unsigned char bytes[PAGE];
      ssize_t got = pread(memory, bytes, PAGE, (off_t)at);
      if (got != PAGE) {
        printf("task %d page %lx: %s\n", task, at, strerrorname_np(errno));
        continue;
      }
      // Behind the end of its file a shared page has what the kernel leaves there.
      unsigned long place = offset + (at - start);
      if (place < size && size - place < PAGE) memset(bytes + (size - place), 0, PAGE - (size - place));
      bool scratch = false;
      for (int i = 0; i < page->count; i++) {
        uint64_t top = page->actors[i].scratch;
        if (at < top && at + 2 * PAGE > top) scratch = true;
        uint64_t rseq = page->actors[i].rseq;
        if (rseq >= at && rseq + 32 <= at + PAGE) memset(bytes + (rseq - at), 0, 32);
      }
      if (!scratch && memcmp(bytes, zeros, PAGE) != 0) printf("task %d page %lx: %016lx\n", task, at, hash_of(bytes, PAGE));
    }
  }
  if (maps != NULL) fclose(maps);
  close(memory);
}

static void look_at_scheduling(int task, pid_t pid) {
  struct scheduling attributes = {0};
  if (syscall(SYS_sched_getattr, pid, &attributes, sizeof attributes, 0) == 0)
    printf("task %d scheduling: %u %lx nice %d priority %u slice %lu clamps %u %u\n", task, attributes.policy, attributes.flags,
           attributes.nice, attributes.priority, attributes.runtime, attributes.least, attributes.most);
  printf("task %d io priority: %ld\n", task, syscall(SYS_ioprio_get, 1, pid));
}

static void open_page(void) {
  int fd = (int)MUST(open("page", O_RDONLY | O_CLOEXEC));
  page = (void *)MUST(mmap(NULL, sizeof *page, PROT_READ, MAP_SHARED, fd, 0));
  close(fd);
}


static int look(int count, char **pids) {
  struct rlimit limit = {5000, 5000};
  setrlimit(RLIMIT_NOFILE, &limit);
  open_page();
  take_descriptors(count, pids);
  for (int i = 0; i < opened_count; i++) look_at_descriptor(&opened[i], atoi(pids[opened[i].task]));
  look_at_relations(count, pids);
  for (int i = 0; i < count; i++) look_at_scheduling(i, atoi(pids[i]));
  for (int i = 0; i < count; i++) look_at_memory(i, atoi(pids[i]));
  printf("end\n");
  return 0;
}
