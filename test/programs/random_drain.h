// Takes what is queued in all descriptors of some tasks, then sends something through each and looks where it comes out.
#pragma once
#include "random_look.h"

static char received[400000];

static void drain_socket(const char *name, int fd);

static void tell_passed(const char *name, int fd) {
  char inner[100];
  struct stat stat;
  fstat(fd, &stat);
  printf("%s passed: mode %o size %ld flags %o position %ld\n", name, stat.st_mode, S_ISDIR(stat.st_mode) ? 0 : (long)stat.st_size, fcntl(fd, F_GETFL), (long)lseek(fd, 0, SEEK_CUR));
  snprintf(inner, sizeof inner, "%s passed", name);
  if (S_ISSOCK(stat.st_mode) && strlen(name) < 60) drain_socket(inner, fd);
  close(fd);
}

static void drain_socket(const char *name, int fd) {
  char prefix[120];
  int listening = 0;
  socklen_t length = sizeof listening;
  getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  if (listening) {
    for (int accepted, i = 0; i < 20 && (accepted = accept(fd, NULL, NULL)) >= 0; i++) {
      snprintf(prefix, sizeof prefix, "%s accepted %d", name, i);
      drain_socket(prefix, accepted);
      close(accepted);
    }
    return;
  }
  for (int i = 0; i < 400; i++) {
    char control[600];
    struct sockaddr_storage sender;
    struct iovec part = {received, sizeof received};
    struct msghdr message = {.msg_name = &sender, .msg_namelen = sizeof sender, .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(fd, &message, MSG_DONTWAIT);
    if (size == -1 && errno != EAGAIN) printf("%s receives: %s\n", name, strerrorname_np(errno));
    if (size == -1 && errno == ECONNRESET && i == 0) continue;
    if (size == -1) break;
    snprintf(prefix, sizeof prefix, "%s receives: flags %x ", name, message.msg_flags & ~MSG_CMSG_CLOEXEC);
    print_bytes(prefix, received, (size_t)size);
    snprintf(prefix, sizeof prefix, "%s from: ", name);
    bool chosen = sender.ss_family == AF_UNIX && message.msg_namelen == 8; // by the kernel: a number
    if (message.msg_namelen > 0 && !chosen) print_bytes(prefix, &sender, message.msg_namelen);
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL; header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
        int count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int)), fds[32];
        memcpy(fds, CMSG_DATA(header), (size_t)count * sizeof(int));
        for (int j = 0; j < count; j++) tell_passed(name, fds[j]);
      } else if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_CREDENTIALS) {
        struct ucred user;
        memcpy(&user, CMSG_DATA(header), sizeof user);
        printf("%s sender: %d %d\n", name, user.uid, user.gid);
      } else printf("%s control: %d %d %zu\n", name, header->cmsg_level, header->cmsg_type, header->cmsg_len);
    }
    if (size == 0 && listening == 0) {
      int type = 0;
      length = sizeof type;
      getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length);
      if (type != SOCK_DGRAM) break;
    }
  }
}

static void drain_one(const char *name, int fd, bool again) {
  char prefix[100];
  struct stat stat;
  if (fstat(fd, &stat) == -1) return;
  int flags = fcntl(fd, F_GETFL);
  if (flags & O_PATH) return;
  if (S_ISSOCK(stat.st_mode)) {
    drain_socket(name, fd);
    return;
  }
  char path[64], link[128] = "";
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  readlink(path, link, sizeof link - 1);
  bool reads = S_ISFIFO(stat.st_mode) || strstr(link, "/ptmx") || strstr(link, "/pts/") || strstr(link, "eventfd") || strstr(link, "timerfd");
  if (reads) {
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    for (int i = 0; i < 100; i++) {
      ssize_t size = read(fd, received, sizeof received);
      if (size == -1 && errno != EAGAIN) printf("%s reads: %s\n", name, strerrorname_np(errno));
      if (size <= 0) break;
      snprintf(prefix, sizeof prefix, "%s reads: ", name);
      print_bytes(prefix, received, (size_t)size);
    }
  } else if (S_ISDIR(stat.st_mode) && !again) {
    ssize_t size = syscall(SYS_getdents64, fd, received, 5000);
    printf("%s entries: %d\n", name, size > 0);
  } else if (strstr(link, "eventpoll")) {
    struct epoll_event events[20];
    int count = epoll_wait(fd, events, 20, 0);
    for (int i = 0; i < count; i++) printf("%s event: %x %lx\n", name, events[i].events, events[i].data.u64);
  } else if (strncmp(link, "/proc/", 6) == 0 && !again) {
    lseek(fd, 0, SEEK_SET);
    printf("%s reads: %d\n", name, read(fd, received, 100) > 0);
  } else if (strstr(link, "inotify")) {
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    while (read(fd, received, 4096) > 0) continue;
  } else if (!again && strncmp(link, "/", 1) == 0 && (flags & O_ACCMODE) != O_WRONLY && strncmp(link, "/dev", 4) != 0 && S_ISREG(stat.st_mode)) {
    ssize_t size = pread(fd, received, 200000, 0);
    snprintf(prefix, sizeof prefix, "%s file: ", name);
    if (size >= 0) print_bytes(prefix, received, (size_t)size);
  }
}

static void send_one(const char *name, int fd, int number) {
  char text[32];
  struct stat stat;
  if (fstat(fd, &stat) == -1 || fcntl(fd, F_GETFL) & O_PATH) return;
  int length = snprintf(text, sizeof text, "sent %d\n", number);
  ssize_t result = 0;
  errno = 0;
  if (S_ISSOCK(stat.st_mode)) {
    int domain = 0;
    socklen_t size = sizeof domain;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    if (domain == AF_NETLINK || domain == AF_PACKET) return;
    result = send(fd, text, (size_t)length, MSG_DONTWAIT | MSG_NOSIGNAL);
  } else if (S_ISFIFO(stat.st_mode) && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    result = write(fd, text, (size_t)length);
  }
  else return;
  printf("%s sends: %zd %s\n", name, result, result == -1 ? strerrorname_np(errno) : "");
}

static int drain(int count, char **pids) {
  struct rlimit limit = {5000, 5000};
  setrlimit(RLIMIT_NOFILE, &limit);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGIO, SIG_IGN);
  take_descriptors(count, pids);
  for (int round = 0; round < 2; round++) {
    bool seen[4000] = {false};
    for (int i = 0; i < opened_count; i++) {
      char name[64];
      if (opened[i].copy < 0 || opened[i].fd < 3 || seen[opened[i].group]) continue;
      seen[opened[i].group] = true;
      snprintf(name, sizeof name, "round %d: task %d fd %d", round, opened[i].task, opened[i].fd);
      drain_one(name, opened[i].copy, round > 0);
      fflush(stdout);
    }
    memset(seen, 0, sizeof seen);
    for (int i = 0; i < opened_count && round == 0; i++) {
      char name[64];
      if (opened[i].copy < 0 || opened[i].fd < 3 || seen[opened[i].group]) continue;
      seen[opened[i].group] = true;
      snprintf(name, sizeof name, "task %d fd %d", opened[i].task, opened[i].fd);
      send_one(name, opened[i].copy, i);
    }
    usleep(5000);
  }
  printf("end\n");
  return 0;
}
