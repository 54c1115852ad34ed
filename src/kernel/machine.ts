// What must be right around the engine besides the kernel's features: rights, versions, settings of the system. Each fact
// says why it is not right and what can be done.

import { existsSync, readFileSync } from "node:fs";
import { readStatus } from "../proc/status.ts";
import type { ProbeName } from "./features.ts";
import { readKernelRelease } from "../proc/self.ts";
import { isKernelSince } from "./release.ts";

export interface MachineFact {
  readonly name: string;
  /** What it is needed for. */
  readonly purpose: string;
  /** Without it nothing works. */
  readonly needed: boolean;
  /** Why it is not right, and what to do; undefined when all is well. */
  readonly fault: string | undefined;
}

/** Looks at the machine and at the rights of this process. */
export function machineFacts(): MachineFact[] {
  return [
    fact("platform", "machine code of the engine", { fault: platformFault() }),
    fact("kernel", "system calls that are newer than 5.9", { fault: kernelFault() }),
    fact("capabilities", "stopping and making processes", { fault: capabilityFault(NEEDED) }),
    fact("more capabilities", "limits, priorities, roots", {
      fault: capabilityFault(USEFUL),
      needed: false,
    }),
    fact("ptrace_scope", "stopping processes", { fault: ptraceFault() }),
    fact("pid_namespaces", "clones", { fault: namespaceFault(), needed: false }),
    fact("unconfined", "programs under seccomp", { fault: seccompFault(), needed: false }),
  ];
}

/** What a probed feature is for, and what to do when the kernel lacks it. */
export function purposeOf(name: ProbeName): string {
  return PURPOSES[name] ?? "";
}

const FLOOR = [5, 10] as const;

function fact(
  name: string,
  purpose: string,
  state: { readonly fault: string | undefined; readonly needed?: boolean },
): MachineFact {
  return { name, purpose, needed: state.needed ?? true, fault: state.fault };
}

function platformFault(): string | undefined {
  if (process.platform === "linux" && process.arch === "x64") return undefined;
  return `this is ${process.platform} on ${process.arch}. Use Linux on x86-64`;
}

function kernelFault(): string | undefined {
  if (isKernelSince(...FLOOR)) return undefined;
  return `this is Linux ${readKernelRelease()}. Update to 5.10 or later`;
}

type Capability = readonly [name: string, bit: number];

/** Numbers: include/uapi/linux/capability.h. */
const NEEDED: readonly Capability[] = [
  ["CHOWN", 0],
  ["DAC_OVERRIDE", 1],
  ["KILL", 5],
  ["SETGID", 6],
  ["SETUID", 7],
  ["SETPCAP", 8],
  ["SYS_PTRACE", 19],
  ["SYS_ADMIN", 21],
];
const USEFUL: readonly Capability[] = [
  ["SYS_CHROOT", 18],
  ["SYS_NICE", 23],
  ["SYS_RESOURCE", 24],
];

function capabilityFault(wanted: readonly Capability[]): string | undefined {
  const { capEff } = readStatus(process.pid);
  const missing = wanted.filter(([, bit]) => ((capEff >> BigInt(bit)) & 1n) === 0n);
  if (missing.length === 0) return undefined;
  const names = missing.map(([name]) => name).join(", ");
  return `this process lacks ${names}. Run it as root; in a container, with these capabilities (docker run --privileged gives all)`;
}

const SCOPE = "/proc/sys/kernel/yama/ptrace_scope";

function ptraceFault(): string | undefined {
  if (!existsSync(SCOPE) || readFileSync(SCOPE, "utf8").trim() !== "3") return undefined;
  return `${SCOPE} is 3, which forbids ptrace until the next boot. Take it out of /etc/sysctl.d and boot`;
}

const PID_NAMESPACES = "/proc/sys/user/max_pid_namespaces";

function namespaceFault(): string | undefined {
  if (!existsSync(PID_NAMESPACES)) return "the kernel was built without CONFIG_PID_NS";
  if (readFileSync(PID_NAMESPACES, "utf8").trim() !== "0") return undefined;
  return `${PID_NAMESPACES} is 0. Raise it: sysctl user.max_pid_namespaces=1000`;
}

/** The kernel lets only a tracer without a filter suspend the filters of others (kernel/ptrace.c). */
function seccompFault(): string | undefined {
  if ((readStatus(process.pid).seccomp ?? 0) === 0) return undefined;
  return "this process runs under a seccomp filter itself. In a container: docker run --security-opt seccomp=unconfined";
}

const PURPOSES: Readonly<Partial<Record<ProbeName, string>>> = {
  map_files: "mapped files, deleted ones too",
  clone3_set_tid: "the pids of restored processes",
  kcmp: "what processes share",
  prctl_mm_map: "heap, stack and command line",
  fcntl_owner: "owners of asynchronous input",
  fdinfo: "epoll, eventfd and the like",
  process_vm: "memory of processes",
  pidfd_store: "open files of processes",
  can_map_vdso: "the kernel's vdso at its old place",
  mnt_id: "the mount of an open file",
  ns_pid: "pids inside of namespaces",
  timers: "POSIX timers",
  sem_next_id: "System V IPC",
  timerfd: "timerfds",
  fdinfo_lock: "file locks",
  seccomp_suspend: "programs under seccomp",
  seccomp_filters: "programs under seccomp",
  kcmp_epoll: "epoll with closed descriptors",
  cgroupns: "cgroup namespaces",
  userns: "user namespaces",
  aio_remap: "asynchronous input and output",
  loginuid: "the login uid",
  tun: "tun devices",
  tun_ns: "tun devices",
  autofs: "autofs mounts",
  sk_ns: "sockets of other namespaces",
  sk_unix_file: "unix sockets with a name",
  net_diag_raw: "raw sockets",
  timens: "time namespaces",
  memfd_hugetlb: "huge pages in memfds",
  get_rseq_conf: "restartable sequences",
  openat2: "paths in foreign roots",
  move_mount_set_group: "mount namespaces",
  sockopt_buf_lock: "buffers of sockets",
  ipv6_freebind: "addresses that are not there yet",
  timer_cr_ids: "timers with gaps in their ids",
  pagemap_scan: "finding pages fast",
  uffd: "memory on demand",
  "uffd-noncoop": "memory on demand",
  mem_dirty_track: "incremental dumps as CRIU makes them",
};
