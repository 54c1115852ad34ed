// One object that cannot be saved, by the argument: a dump must refuse it, and this process must go on with the object in order.
#include "test.h"
#include <limits.h>
#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/mount.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sys/fanotify.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/uio.h>
#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static const char *object;
static int fd = -1;
static atomic_uint *completions; // of a ring

static void check(void) {
  if (fd >= 0) EXPECT(fcntl(fd, F_GETFD) >= 0, "the descriptor is gone: %m");
  EXPECT(completions == NULL || *completions == 0, "a request was disturbed");
}

static int accepted;

// The connected end of a connection to ourselves.
static int connection(int protocol) {
  struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof here;
  int listener = (int)MUST(socket(AF_INET, SOCK_STREAM, protocol));
  MUST(bind(listener, (void *)&here, size));
  MUST(listen(listener, 1));
  MUST(getsockname(listener, (void *)&here, &size));
  int client = (int)MUST(socket(AF_INET, SOCK_STREAM, protocol));
  MUST(connect(client, (void *)&here, size));
  accepted = (int)MUST(accept(listener, NULL, NULL));
  return client;
}

static size_t count_threads(void) {
  char value[32];
  field_of("/proc/self/status", "Threads", value, sizeof value);
  return (size_t)atoi(value);
}

// A ring with a read under way, which a kernel thread of this process does: nothing ever comes.
static int busy_ring(uint32_t flags, uint8_t how) {
  static int ends[2];
  struct io_uring_params params = {.flags = flags};
  int ring = (int)MUST(syscall(SYS_io_uring_setup, 4, &params));
  // IORING_FEAT_SINGLE_MMAP: both queues are here.
  size_t size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
  if (size < params.sq_off.array + params.sq_entries * sizeof(uint32_t)) size = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
  char *queue = (char *)MUST(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING));
  struct io_uring_sqe *entries =
      (void *)MUST(mmap(NULL, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES));
  MUST(pipe(ends));
  static char into;
  completions = (atomic_uint *)(queue + params.cq_off.tail);
  static struct iovec vector = {&into, 1};
  entries[0] = (struct io_uring_sqe){.opcode = IORING_OP_READV, .flags = how, .fd = ends[0], .addr = (uintptr_t)&vector, .len = 1};
  ((uint32_t *)(queue + params.sq_off.array))[0] = 0;
  atomic_store((atomic_uint *)(queue + params.sq_off.tail), 1);
  MUST(syscall(SYS_io_uring_enter, ring, 1, 0, flags & IORING_SETUP_SQPOLL ? IORING_ENTER_SQ_WAKEUP : 0, NULL, 0));
  size_t workers = flags & IORING_SETUP_SQPOLL ? 2 : 1;
  if (how == IOSQE_ASYNC) MUST(WITHIN(5000, count_threads() == 1 + workers) ? 0 : -1);
  return ring;
}

// A ring at rest with something about it that cannot be saved.
static int odd_ring(const char *what) {
  struct io_uring_params params = {.flags = strcmp(what, "passed") == 0 ? IORING_SETUP_SINGLE_ISSUER : 0};
  int ring = (int)MUST(syscall(SYS_io_uring_setup, 4, &params));
  if (strcmp(what, "personality") == 0) MUST(syscall(SYS_io_uring_register, ring, IORING_REGISTER_PERSONALITY, NULL, 0));
  if (strcmp(what, "passed") == 0) {
    MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING));
    MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES));
    pid_t child = (pid_t)MUST(fork());
    if (child == 0) idle();
    keep_child(child);
  }
  if (strcmp(what, "closed") == 0) {
    MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING));
    close(ring);
    return -1;
  }
  return ring;
}

static int perf_event(bool mapped) {
  struct perf_event_attr attr = {
      .type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_CPU_CLOCK, .disabled = 1};
  int event = (int)MUST(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0));
  if (mapped) MUST(mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, event, 0));
  return event;
}

static int bpf_program(void) {
  struct bpf_insn code[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K}, {.code = BPF_JMP | BPF_EXIT}};
  union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 2, .insns = (uintptr_t)code, .license = (uintptr_t) "GPL"};
  return (int)MUST(syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr));
}

static int bpf_map(uint32_t type, uint32_t flags) {
  uint32_t key = type == BPF_MAP_TYPE_ARRAY ? 4 : 0;
  union bpf_attr attr = {.map_type = type, .key_size = key, .value_size = 4096, .max_entries = 1, .map_flags = flags};
  int map = (int)MUST(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr));
  if (flags & BPF_F_MMAPABLE) MUST(mmap(NULL, 4096, PROT_READ, MAP_SHARED, map, 0));
  return map;
}

// A map that a bpf program uses, too, which a process outside of the tree keeps loaded until the directory of the test is gone.
static int shared_map(void) {
  union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1};
  int map = (int)MUST(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr));
  struct bpf_insn code[] = {
      {.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map},
      {0},
      {.code = BPF_ALU64 | BPF_MOV | BPF_K},
      {.code = BPF_JMP | BPF_EXIT},
  };
  union bpf_attr load = {
      .prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = COUNT(code), .insns = (uintptr_t)code, .license = (uintptr_t) "GPL"};
  pid_t middle = (pid_t)MUST(fork());
  if (middle == 0) {
    if (fork() != 0) _exit(0);
    setsid();
    tell_number("loaded", syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load));
    while (access(".", F_OK) == 0) sleep_ms(10);
    _exit(0);
  }
  waitpid(middle, NULL, 0);
  MUST(hear_number("loaded"));
  return map;
}

static int seccomp_listener(void) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_acct, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog filter = {COUNT(code), code};
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  return (int)MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter));
}

static int landlock_ruleset(void) {
  struct landlock_ruleset_attr attr = {.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE};
  return (int)MUST(syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0));
}

static void enter_domain(void) {
  int ruleset = landlock_ruleset();
  MUST(syscall(SYS_landlock_restrict_self, ruleset, 0));
  close(ruleset);
}

static void become_user(void) {
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  MUST(setresgid(65534, 65534, 65534));
  MUST(setresuid(65534, 65534, 65534));
}

static void *domain_of_thread(void *unused) {
  enter_domain();
  tell("entered", "");
  for (;;) pause();
  return unused;
}

static int secret_memory(bool mapped) {
  int secret = (int)MUST(syscall(SYS_memfd_secret, 0));
  MUST(ftruncate(secret, PAGE));
  if (mapped) MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, secret, 0));
  return secret;
}

int main(int argc, char **argv) {
  begin();
  object = argc > 1 ? argv[1] : "";
  // Not refused, but lost: only --strict makes a refusal of it.
  if (strcmp(object, "bpf_shared") == 0) fd = shared_map();
  if (strcmp(object, "supervisor") == 0) close(seccomp_listener());
  if (strcmp(object, "keyring") == 0) MUST(syscall(SYS_add_key, "user", "a key", "secret", 6, KEY_SPEC_PROCESS_KEYRING));
  if (strcmp(object, "death") == 0) MUST(prctl(PR_SET_PDEATHSIG, SIGUSR1));
  if (strcmp(object, "common_undo") == 0) {
    MUST(unshare(CLONE_NEWIPC));
    int set = (int)MUST(semget(IPC_PRIVATE, 1, 0600));
    MUST(semop(set, &(struct sembuf){0, 1, SEM_UNDO}, 1));
    // A process that has this one's list in common.
    pid_t child = (pid_t)MUST(syscall(SYS_clone, CLONE_SYSVSEM | SIGCHLD, 0, 0, 0, 0));
    if (child == 0) idle();
    keep_child(child);
  }
  if (strcmp(object, "dnotify") == 0) {
    fd = (int)MUST(open(".", O_RDONLY | O_DIRECTORY));
    MUST(signal(SIGIO, SIG_IGN) == SIG_ERR ? -1 : 0);
    MUST(fcntl(fd, F_NOTIFY, DN_CREATE | DN_MULTISHOT));
  }
  if (strcmp(object, "socket_error") == 0) {
    struct sockaddr_in nobody = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_port = htons(9)};
    fd = (int)MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(connect(fd, (void *)&nobody, sizeof nobody));
    MUST(send(fd, "x", 1, 0));
    struct pollfd error = {.fd = fd};
    MUST(poll(&error, 1, 5000) == 1 ? 0 : -1);
  }
  if (strcmp(object, "packets") == 0) {
    struct sockaddr_in nobody = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_port = htons(9)};
    fd = (int)MUST(socket(AF_PACKET, SOCK_DGRAM, htons(0x0800)));
    int sender = (int)MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(sendto(sender, "x", 1, 0, (void *)&nobody, sizeof nobody));
    close(sender);
    struct pollfd packet = {.fd = fd, .events = POLLIN};
    MUST(poll(&packet, 1, 5000) == 1 ? 0 : -1);
  }
  if (strcmp(object, "domain") == 0) enter_domain();
  if (strcmp(object, "domain_of_thread") == 0) {
    pthread_t thread;
    char text[8];
    MUST(pthread_create(&thread, NULL, domain_of_thread, NULL) == 0 ? 0 : -1);
    MUST(hear("entered", text, sizeof text) ? 0 : -1);
  }
  if (strcmp(object, "domain_of_user") == 0 || strcmp(object, "user") == 0) become_user();
  if (strcmp(object, "domain_of_user") == 0) enter_domain();
  if (strncmp(object, "io_uring_odd_", 13) == 0) fd = odd_ring(object + 13);
  if (strcmp(object, "io_uring_busy") == 0) fd = busy_ring(0, IOSQE_ASYNC);
  if (strcmp(object, "io_uring_polled") == 0) fd = busy_ring(IORING_SETUP_SQPOLL, IOSQE_ASYNC);
  if (strcmp(object, "io_uring_vector") == 0) fd = busy_ring(0, IOSQE_CQE_SKIP_SUCCESS);
  if (strcmp(object, "perf_event") == 0) fd = perf_event(false);
  if (strcmp(object, "perf_event_mapped") == 0) fd = perf_event(true);
  if (strcmp(object, "bpf_program") == 0) fd = bpf_program();
  if (strcmp(object, "bpf_queue") == 0) fd = bpf_map(BPF_MAP_TYPE_QUEUE, 0);
  if (strcmp(object, "bpf_map_mapped") == 0) fd = bpf_map(BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE);
  if (strcmp(object, "seccomp_listener") == 0) fd = seccomp_listener();
  if (strcmp(object, "landlock") == 0) fd = landlock_ruleset();
  if (strcmp(object, "secret") == 0) fd = secret_memory(false);
  if (strcmp(object, "secret_mapped") == 0) fd = secret_memory(true);
  if (strcmp(object, "fscontext") == 0) fd = MUST(syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC));
  if (strcmp(object, "open_tree") == 0)
    fd = MUST(syscall(SYS_open_tree, AT_FDCWD, ".", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
  if (strcmp(object, "kvm") == 0) fd = MUST(open("/dev/kvm", O_RDWR));
  if (strcmp(object, "kvm_vm") == 0) fd = MUST(ioctl((int)MUST(open("/dev/kvm", O_RDWR)), 0xae01, 0));
  if (strcmp(object, "userfaultfd") == 0) fd = MUST(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  if (strcmp(object, "fanotify") == 0) {
    fd = MUST(fanotify_init(FAN_CLASS_CONTENT, O_RDONLY));
    close((int)MUST(open("guarded", O_RDWR | O_CREAT, 0600)));
    MUST(fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN_PERM, AT_FDCWD, "guarded"));
  }
  if (strcmp(object, "mptcp") == 0) fd = connection(IPPROTO_MPTCP);
  if (strncmp(object, "urgent", 6) == 0) {
    char byte;
    struct pollfd urgent;
    fd = connection(IPPROTO_TCP);
    urgent = (struct pollfd){.fd = accepted, .events = POLLPRI};
    MUST(send(fd, "before", 6, 0));
    MUST(send(fd, "!", 1, MSG_OOB));
    MUST(send(fd, "behind", 6, 0));
    MUST(poll(&urgent, 1, 5000) == 1 ? 0 : -1);
    if (strcmp(object, "urgent_read") == 0) MUST(recv(accepted, &byte, 1, MSG_OOB));
  }
  // PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON: from anywhere calls are let through, and nothing could let others through.
  if (strcmp(object, "dispatch") == 0) MUST(prctl(59, 1, 1, LONG_MAX - 1, NULL));
  serve(check);
}
