// The probes behind features.ts. Each returns nothing when the kernel has the feature, else the reason. None
// leaves a trace: calls are made so that they fail after the point that tells, or on objects that are closed
// at once. Numbers: include/uapi/linux/{prctl,userfaultfd,fs,sockios,seccomp,kcmp,fcntl}.h.

import { accessSync, closeSync, constants, existsSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import {
  MFD_CLOEXEC,
  MFD_HUGETLB,
  PAGEMAP_SCAN,
  PAGE_IS_GUARD,
  PAGE_IS_PRESENT,
  PAGE_SIZE,
} from "../sys/abi/mman.ts";
import { NETLINK_NETFILTER } from "../sys/abi/netlink.ts";
import { NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN } from "../sys/abi/nftables.ts";
import { PTRACE_O_SUSPEND_SECCOMP, PTRACE_SEIZE } from "../sys/abi/ptrace.ts";
import { ARCH_MAP_VDSO_64, CLONE_ARGS_SIZE, PR_SET_MM } from "../sys/abi/sched.ts";
import { EEXIST, EFAULT, EINVAL, ENOSYS, errnoName } from "../sys/errno.ts";
import { addressOf, trySyscall } from "../sys/ffi.ts";
import { writeU64 } from "../sys/memory.ts";
import { NetlinkSocket } from "../sys/netlink.ts";
import { isKernelSince } from "./release.ts";

/** The reason why a feature is missing, or nothing. */
type Probe = () => string | undefined;

export type ProbeName = keyof typeof PROBES;

export const PROBES = {
  // What everything rests on.
  map_files: () => readable("/proc/self/map_files"),
  kcmp: () => notMissing(trySyscall("kcmp", process.pid, process.pid, KCMP_FILE, 0, 0)),
  prctl_mm_map: () => {
    const size = Buffer.alloc(4);
    return fails(trySyscall("prctl", PR_SET_MM, PR_SET_MM_MAP_SIZE, size, 0, 0));
  },
  fcntl_owner: () =>
    withFd(
      () => openSync("/proc/self/comm", "r"),
      (fd) => fails(trySyscall("fcntl", fd, F_GETOWNER_UIDS, Buffer.alloc(8))),
    ),
  fdinfo: () => fdinfoHas(() => trySyscall("eventfd2", 13, 0), "eventfd-count:"),
  process_vm: () => notMissing(trySyscall("process_vm_readv", process.pid, 0, 0, 0, 0, 0)),
  timers: () => exists("/proc/self/timers"),
  sem_next_id: () => readable("/proc/sys/kernel/sem_next_id"),

  // CRIU's names.
  aio_remap: () => exists("/proc/sys/fs/aio-max-nr"),
  apparmor_stacking: () => exists("/sys/kernel/security/apparmor/features/domain/stack"),
  autofs: () => lineIn("/proc/filesystems", /\bautofs$/m),
  breakpoints: () => exists("/proc/sys/kernel/perf_event_paranoid"),
  can_map_vdso: () => expects(trySyscall("arch_prctl", ARCH_MAP_VDSO_64, 0), EEXIST),
  cgroupns: () => exists("/proc/self/ns/cgroup"),
  clone3_set_tid: probeSetTid,
  compat_cr: () => "32-bit tasks are not saved yet",
  external_net_ns: probeSocketNamespace,
  fdinfo_lock: probeFdinfoLock,
  get_rseq_conf: () => since("5.13") ?? notMissing(trySyscall("rseq", 0, 0, 0, 0)),
  has_ipt_legacy: () => programInPath("iptables-legacy"),
  ipv6_freebind: () => exists("/proc/net/if_inet6") ?? since("4.15"),
  kcmp_epoll: probeKcmpEpoll,
  link_nsid: () => since("4.0"),
  loginuid: () => writable("/proc/self/loginuid"),
  // Incremental dumps compare pages with those of the set before: no bit of the kernel is needed.
  mem_dirty_track: () => undefined,
  memfd_hugetlb: () =>
    withFd(() => trySyscall("memfd_create", Buffer.from("probe\0"), MFD_CLOEXEC | MFD_HUGETLB)),
  mnt_id: () => lineIn("/proc/self/fdinfo/2", /^mnt_id:/m),
  move_mount_set_group: () => since("5.15"),
  net_diag_raw: probeRawDiag,
  network_lock_nftables: probeNftables,
  newifindex: () => since("3.9"),
  nftables: () => probeNftables() ?? programInPath("nft"),
  ns_pid: () => lineIn("/proc/self/status", /^NSpid:/m),
  nsid: () => since("4.0"),
  openat2: () => since("5.6"),
  overlayfs_maps: () => lineIn("/proc/filesystems", /\boverlay$/m) ?? since("6.8"),
  pagemap_scan: () => scanPagemap(PAGE_IS_PRESENT),
  pagemap_scan_guard_pages: () => scanPagemap(PAGE_IS_PRESENT | PAGE_IS_GUARD),
  pidfd_store: probePidfd,
  seccomp_filters: () => {
    const action = Buffer.alloc(4);
    action.writeUInt32LE(SECCOMP_RET_ALLOW);
    return (
      fails(trySyscall("seccomp", SECCOMP_GET_ACTION_AVAIL, 0, action)) ??
      exists("/proc/self/timers")
    );
  },
  // The options are looked at before the kernel finds that nobody may trace himself.
  seccomp_suspend: () =>
    refuses(trySyscall("ptrace", PTRACE_SEIZE, process.pid, 0, PTRACE_O_SUSPEND_SECCOMP), EINVAL),
  sk_ns: probeSocketNamespace,
  sk_unix_file: () =>
    withFd(
      () => trySyscall("socket", AF_UNIX, SOCK_DGRAM, 0),
      (fd) => refuses(trySyscall("ioctl", fd, SIOCUNIXFILE, 0), ENOTTY),
    ),
  sockopt_buf_lock: () => since("5.16"),
  tcp_half_closed: () => since("4.13"),
  timens: () => exists("/proc/self/ns/time"),
  timer_cr_ids: () =>
    fails(trySyscall("prctl", PR_TIMER_CREATE_RESTORE_IDS, PR_TIMER_IDS_GET, 0, 0, 0)),
  timerfd: () => fdinfoHas(() => trySyscall("timerfd_create", 1, 0), "clockid:"),
  tun: () => withFd(() => openSync("/dev/net/tun", "r+")),
  tun_ns: () =>
    withFd(
      () => openSync("/dev/net/tun", "r+"),
      (fd) => opensFd(trySyscall("ioctl", fd, SIOCGSKNS, 0)),
    ),
  uffd: () => withFd(() => trySyscall("userfaultfd", O_CLOEXEC_NONBLOCK)),
  "uffd-noncoop": probeUserfaultEvents,
  userns: () =>
    exists("/proc/self/ns/user") ??
    (readFileSync("/proc/sys/user/max_user_namespaces", "utf8").trim() === "0"
      ? "/proc/sys/user/max_user_namespaces is 0"
      : undefined),
} satisfies Record<string, Probe>;

const KCMP_FILE = 0;
const KCMP_EPOLL_TFD = 7;
const PR_SET_MM_MAP_SIZE = 15;
const PR_TIMER_CREATE_RESTORE_IDS = 77;
const PR_TIMER_IDS_GET = 2;
const F_GETOWNER_UIDS = 17;
const SECCOMP_GET_ACTION_AVAIL = 2;
const SECCOMP_RET_ALLOW = 0x7fff_0000;
const SIOCGSKNS = 0x894c;
const SIOCUNIXFILE = 0x89e0;
const ENOTTY = 25;
const AF_UNIX = 1;
const AF_NETLINK = 16;
const SOCK_DGRAM = 2;
const SOCK_RAW = 3;
const O_CLOEXEC_NONBLOCK = 0o2004000;
const UFFDIO_API = 0xc018_aa3f;
const UFFD_API = 0xaa;
/** Events of fork, remap, remove and unmap. */
const UFFD_EVENTS = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 6);
const LOCK_EX = 2;
const EPOLL_CTL_ADD = 1;

/** A thread id list that cannot be read: EFAULT comes from a kernel that knows the field, before any clone. */
function probeSetTid(): string | undefined {
  const args = Buffer.alloc(CLONE_ARGS_SIZE);
  const setTidOffset = 64;
  writeU64(args, setTidOffset, 1);
  writeU64(args, setTidOffset + 8, 1);
  return expects(trySyscall("clone3", args, CLONE_ARGS_SIZE), EFAULT);
}

function probeFdinfoLock(): string | undefined {
  return withFd(
    () => trySyscall("memfd_create", Buffer.from("probe\0"), MFD_CLOEXEC),
    (fd) => fails(trySyscall("flock", fd, LOCK_EX)) ?? lineIn(`/proc/self/fdinfo/${fd}`, /^lock:/m),
  );
}

function probeKcmpEpoll(): string | undefined {
  return withFd(
    () => trySyscall("epoll_create1", 0),
    (epoll) =>
      withFd(
        () => trySyscall("eventfd2", 0, 0),
        (event) => {
          const added = trySyscall("epoll_ctl", epoll, EPOLL_CTL_ADD, event, Buffer.alloc(12));
          if (added < 0) return errnoName(-added);
          const slot = Buffer.alloc(12);
          slot.writeUInt32LE(epoll, 0);
          slot.writeUInt32LE(event, 4);
          const { pid } = process;
          return fails(trySyscall("kcmp", pid, pid, KCMP_EPOLL_TFD, event, slot));
        },
      ),
  );
}

function probeSocketNamespace(): string | undefined {
  return withFd(
    () => trySyscall("socket", AF_UNIX, SOCK_DGRAM, 0),
    (fd) => opensFd(trySyscall("ioctl", fd, SIOCGSKNS, 0)),
  );
}

/** Asks sock_diag for raw IPv4 sockets: a kernel without the module answers with an error message. */
/** The kernel's answer to the question for the generation of its rules. */
function probeNftables(): string | undefined {
  try {
    const socket = new NetlinkSocket(NETLINK_NETFILTER);
    const type = (NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETGEN;
    const answer = socket.tryRequest({ type, body: Buffer.alloc(4) });
    socket.close();
    return typeof answer === "number" ? errnoName(-answer) : undefined;
  } catch (error) {
    return error instanceof RepriseError ? error.errno : String(error);
  }
}

function probeRawDiag(): string | undefined {
  const NETLINK_SOCK_DIAG = 4;
  const SOCK_DIAG_BY_FAMILY = 20;
  const NLM_F_REQUEST_DUMP = 0x301;
  const NLMSG_ERROR = 2;
  const IPPROTO_RAW = 255;
  const request = Buffer.alloc(72);
  request.writeUInt32LE(request.length, 0);
  request.writeUInt16LE(SOCK_DIAG_BY_FAMILY, 4);
  request.writeUInt16LE(NLM_F_REQUEST_DUMP, 6);
  request[16] = 2;
  request[17] = IPPROTO_RAW;
  request.writeUInt32LE(0xffff_ffff, 20);
  return withFd(
    () => trySyscall("socket", AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG),
    (fd) => {
      const sent = trySyscall("write", fd, request, request.length);
      if (sent < 0) return errnoName(-sent);
      const answer = Buffer.alloc(8192);
      const length = trySyscall("read", fd, answer, answer.length);
      if (length < 0) return errnoName(-length);
      if (answer.readUInt16LE(4) !== NLMSG_ERROR) return undefined;
      const errno = -answer.readInt32LE(16);
      return errno === 0 ? undefined : errnoName(errno);
    },
  );
}

/** struct pm_scan_arg over one page of ours that is surely there. */
function scanPagemap(categories: number): string | undefined {
  const SIZE = 96;
  const page = Buffer.alloc(2 * PAGE_SIZE, 1);
  const start = Math.ceil(addressOf(page) / PAGE_SIZE) * PAGE_SIZE;
  const regions = Buffer.alloc(24);
  const arg = Buffer.alloc(SIZE);
  const words = [SIZE, 0, start, start + PAGE_SIZE, 0, addressOf(regions), 1, 0, 0, 0, categories];
  for (const [index, word] of [...words, categories].entries()) writeU64(arg, index * 8, word);
  return withFd(
    () => openSync("/proc/self/pagemap", "r"),
    (fd) => {
      const result = trySyscall("ioctl", fd, PAGEMAP_SCAN, arg);
      return result < 0 ? `ioctl PAGEMAP_SCAN: ${errnoName(-result)}` : undefined;
    },
  );
}

function probePidfd(): string | undefined {
  return withFd(
    () => trySyscall("pidfd_open", process.pid, 0),
    (fd) => opensFd(trySyscall("pidfd_getfd", fd, fd, 0)),
  );
}

function probeUserfaultEvents(): string | undefined {
  return withFd(
    () => trySyscall("userfaultfd", O_CLOEXEC_NONBLOCK),
    (fd) => {
      const api = Buffer.alloc(24);
      writeU64(api, 0, UFFD_API);
      writeU64(api, 8, UFFD_EVENTS);
      return fails(trySyscall("ioctl", fd, UFFDIO_API, api));
    },
  );
}

/** Opens, uses and closes a descriptor; a negative number from `open` is an error number. */
function withFd(
  open: () => number,
  use: (fd: number) => string | undefined = () => undefined,
): string | undefined {
  const fd = open();
  if (fd < 0) return errnoName(-fd);
  try {
    return use(fd);
  } finally {
    closeSync(fd);
  }
}

function opensFd(result: number): string | undefined {
  return withFd(() => result);
}

function fails(result: number): string | undefined {
  return result < 0 ? errnoName(-result) : undefined;
}

function expects(result: number, errno: number): string | undefined {
  return result === -errno
    ? undefined
    : `the kernel answered ${result < 0 ? errnoName(-result) : result}`;
}

/** Any answer but this one says that the kernel knows the call. */
function refuses(result: number, errno: number): string | undefined {
  return result === -errno ? errnoName(errno) : undefined;
}

function notMissing(result: number): string | undefined {
  return refuses(result, ENOSYS);
}

function fdinfoHas(open: () => number, field: string): string | undefined {
  return withFd(open, (fd) => lineIn(`/proc/self/fdinfo/${fd}`, new RegExp(`^${field}`, "m")));
}

function lineIn(path: string, pattern: RegExp): string | undefined {
  return pattern.test(readFileSync(path, "utf8")) ? undefined : `${path} has no ${pattern.source}`;
}

function exists(path: string): string | undefined {
  return existsSync(path) ? undefined : `${path} does not exist`;
}

function readable(path: string): string | undefined {
  accessSync(path, constants.R_OK);
  return undefined;
}

function writable(path: string): string | undefined {
  accessSync(path, constants.W_OK);
  return undefined;
}

function programInPath(name: string): string | undefined {
  const places = (process.env["PATH"] ?? "").split(":");
  const found = [...places, "/usr/sbin", "/sbin"].some((place) => existsSync(join(place, name)));
  return found ? undefined : `${name} is not installed`;
}

/** The feature came with a release and can neither be left out nor be asked for cheaply. */
function since(wanted: string): string | undefined {
  const [major = 0, minor = 0] = wanted.split(".").map(Number);
  return isKernelSince(major, minor) ? undefined : `it came with Linux ${wanted}`;
}
