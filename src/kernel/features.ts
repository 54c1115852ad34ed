// What the running kernel can do, by CRIU's feature names, each asked from the kernel itself wherever
// asking changes nothing; a few whose test would need mounts or connections are told by /proc or by the
// release they came with. A probe answers with the reason why not, or with nothing.

import { type ProbeName, PROBES } from "./probes.ts";

export type { ProbeName } from "./probes.ts";

/** Names for `check --feature`, as CRIU 4.2 has them. */
export const FEATURE_NAMES = [
  "aio_remap",
  "apparmor_stacking",
  "autofs",
  "breakpoints",
  "can_map_vdso",
  "cgroupns",
  "clone3_set_tid",
  "compat_cr",
  "external_net_ns",
  "fdinfo_lock",
  "get_rseq_conf",
  "has_ipt_legacy",
  "ipv6_freebind",
  "kcmp_epoll",
  "link_nsid",
  "loginuid",
  "mem_dirty_track",
  "memfd_hugetlb",
  "mnt_id",
  "move_mount_set_group",
  "net_diag_raw",
  "network_lock_nftables",
  "newifindex",
  "nftables",
  "ns_pid",
  "nsid",
  "openat2",
  "overlayfs_maps",
  "pagemap_scan",
  "pagemap_scan_guard_pages",
  "pidfd_store",
  "seccomp_filters",
  "seccomp_suspend",
  "sk_ns",
  "sk_unix_file",
  "sockopt_buf_lock",
  "tcp_half_closed",
  "timens",
  "timer_cr_ids",
  "timerfd",
  "tun",
  "tun_ns",
  "uffd",
  "uffd-noncoop",
  "userns",
] as const;

export type FeatureName = (typeof FEATURE_NAMES)[number];

/** Without `basic` nothing works; the others matter to some process trees. */
export type Category = "basic" | "extra" | "experimental";

export interface ProbeResult {
  readonly name: ProbeName;
  readonly supported: boolean;
  /** Why it is not supported; "" when it is. */
  readonly reason: string;
}

const CATEGORIES: Readonly<Record<Category, readonly ProbeName[]>> = {
  basic: [
    "map_files",
    "clone3_set_tid",
    "kcmp",
    "prctl_mm_map",
    "fcntl_owner",
    "fdinfo",
    "process_vm",
    "pidfd_store",
    "can_map_vdso",
    "mnt_id",
    "ns_pid",
    "timers",
  ],
  extra: [
    "sem_next_id",
    "timerfd",
    "fdinfo_lock",
    "seccomp_suspend",
    "seccomp_filters",
    "kcmp_epoll",
    "cgroupns",
    "userns",
    "aio_remap",
    "loginuid",
    "tun",
    "tun_ns",
    "autofs",
    "sk_ns",
    "sk_unix_file",
    "net_diag_raw",
    "timens",
    "memfd_hugetlb",
    "get_rseq_conf",
    "openat2",
    "move_mount_set_group",
    "sockopt_buf_lock",
    "ipv6_freebind",
    "timer_cr_ids",
    "pagemap_scan",
  ],
  experimental: ["uffd", "uffd-noncoop", "mem_dirty_track"],
};

const results = new Map<ProbeName, ProbeResult>();

export function isFeatureName(name: string): name is FeatureName {
  return (FEATURE_NAMES as readonly string[]).includes(name);
}

/** Asks the kernel once for one feature; a probe that fails in an unforeseen way counts as not supported. */
export function probeFeature(name: ProbeName): ProbeResult {
  let result = results.get(name);
  if (result === undefined) {
    const reason = reasonAgainst(name);
    result = { name, supported: reason === undefined, reason: reason ?? "" };
    results.set(name, result);
  }
  return result;
}

/** Asks for every feature of some categories. */
export function probeAll(categories: readonly Category[]): ProbeResult[] {
  return categories.flatMap((category) => CATEGORIES[category].map((name) => probeFeature(name)));
}

function reasonAgainst(name: ProbeName): string | undefined {
  try {
    return PROBES[name]();
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
