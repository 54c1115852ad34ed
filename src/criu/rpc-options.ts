// criu_opts of an RPC request as the command line that asks for the same: so every option goes one way into the engine, and
// configuration files of all kinds are lists of the same form. What has no option of its own (directories by descriptors of
// the client) is in rpc-session.ts. Facts: CRIU's images/rpc.proto.

import { RepriseError } from "../errors.ts";
import {
  CriuCgMode,
  CriuNetworkLockMethod,
  CriuPreDumpMode,
  type CriuOpts,
} from "../images/schema/messages.generated.ts";
import type { ListName, ValueName } from "./options.ts";

/** CLONE_NEWNET: the only namespace that can be left empty. */
const EMPTY_NET = 0x40000000;

/** Fields that switch a flag of another or the same name on and off. */
const FLAGS = {
  tcp_established: "tcp-established",
  tcp_skip_in_flight: "skip-in-flight",
  tcp_close: "tcp-close",
  weak_sysctls: "weak-sysctls",
  evasive_devices: "evasive-devices",
  shell_job: "shell-job",
  file_locks: "file-locks",
  track_mem: "track-mem",
  auto_dedup: "auto-dedup",
  link_remap: "link-remap",
  force_irmap: "force-irmap",
  rst_sibling: "restore-sibling",
  skip_file_rwx_check: "skip-file-rwx-check",
  unprivileged: "unprivileged",
  mntns_compat_mode: "mntns-compat-mode",
  display_stats: "display-stats",
  tls: "tls",
  orphan_pts_master: "orphan-pts-master",
} as const satisfies { readonly [field in keyof CriuOpts]?: string };

/** Flags that have no way back: false leaves them as the configuration has them. */
const ONE_WAY = {
  ext_masters: "enable-external-masters",
  ext_sharing: "enable-external-sharing",
  lazy_pages: "lazy-pages",
  tls_no_cn_verify: "tls-no-cn-verify",
  leave_running: "leave-running",
  leave_stopped: "leave-stopped",
} as const satisfies { readonly [field in keyof CriuOpts]?: string };

/** Texts and numbers that are the value of an option. */
const VALUES = {
  pid: "tree",
  root: "root",
  parent_img: "prev-images-dir",
  freeze_cgroup: "freeze-cgroup",
  lsm_profile: "lsm-profile",
  lsm_mount_context: "lsm-mount-context",
  timeout: "timeout",
  cgroup_props: "cgroup-props",
  cgroup_props_file: "cgroup-props-file",
  cgroup_yard: "cgroup-yard",
  ghost_limit: "ghost-limit",
  tls_cacert: "tls-cacert",
  tls_cacrl: "tls-cacrl",
  tls_cert: "tls-cert",
  tls_key: "tls-key",
} as const satisfies { readonly [field in keyof CriuOpts]?: ValueName };

const LISTS = {
  external: "external",
  skip_mnt: "skip-mnt",
  enable_fs: "enable-fs",
  irmap_scan_paths: "irmap-scan-path",
  cgroup_dump_controller: "cgroup-dump-controller",
} as const satisfies { readonly [field in keyof CriuOpts]?: ListName };

const CGROUP_MODES: Readonly<Record<number, string>> = {
  [CriuCgMode.IGNORE]: "ignore",
  [CriuCgMode.CG_NONE]: "none",
  [CriuCgMode.PROPS]: "props",
  [CriuCgMode.SOFT]: "soft",
  [CriuCgMode.FULL]: "full",
  [CriuCgMode.STRICT]: "strict",
  // Soft, but not in so many words: the caller's own placing of the worker counts more than recorded cgroups.
  [CriuCgMode.DEFAULT]: "",
};

const NETWORK_LOCKS: Readonly<Record<number, string>> = {
  [CriuNetworkLockMethod.IPTABLES]: "iptables",
  [CriuNetworkLockMethod.NFTABLES]: "nftables",
  [CriuNetworkLockMethod.SKIP]: "skip",
};

const PRE_DUMP_MODES: Readonly<Record<number, string>> = {
  [CriuPreDumpMode.SPLICE]: "splice",
  [CriuPreDumpMode.VM_READ]: "read",
};

/** Long options for what a request asks; a field that is not set stands for none. */
export function requestArguments(opts: CriuOpts): string[] {
  return [
    ...flagArguments(opts),
    ...entriesOf(VALUES).flatMap(([field, name]) => valueArgument(name, opts[field])),
    ...entriesOf(LISTS).flatMap(([field, name]) => opts[field].map((one) => `--${name}=${one}`)),
    ...cgroupArguments(opts),
    ...externalArguments(opts),
    ...pageArguments(opts),
    ...chosen("network-lock", opts.network_lock, NETWORK_LOCKS),
    ...emptyNamespaces(opts.empty_ns ?? 0),
    ...(opts.cpu_cap === undefined ? [] : [`--cpu-cap=${cpuCapabilities(opts.cpu_cap)}`]),
    ...(opts.exec_cmd.length === 0 ? [] : ["--exec-cmd"]),
    `--verbosity=${opts.log_level ?? DEFAULT_LOG_LEVEL}`,
  ];
}

const DEFAULT_LOG_LEVEL = 2;

function flagArguments(opts: CriuOpts): string[] {
  const both = entriesOf(FLAGS).flatMap(([field, name]) => {
    const value = opts[field];
    return value === undefined ? [] : [value ? `--${name}` : `--no-${name}`];
  });
  const oneWay = entriesOf(ONE_WAY).flatMap(([field, name]) =>
    opts[field] === true ? [`--${name}`] : [],
  );
  return [...both, ...oneWay, ...(opts.auto_ext_mnt === true ? ["--ext-mount-map=auto"] : [])];
}

function cgroupArguments(opts: CriuOpts): string[] {
  const { manage_cgroups, manage_cgroups_mode } = opts;
  const simple =
    manage_cgroups === undefined
      ? []
      : [manage_cgroups ? "--manage-cgroups" : "--manage-cgroups=ignore"];
  const roots = opts.cg_root.map(
    ({ ctrl = "", path }) => `--cgroup-root=${ctrl === "" ? "" : `${ctrl}:`}${path}`,
  );
  return [...simple, ...chosen("manage-cgroups", manage_cgroups_mode, CGROUP_MODES), ...roots];
}

function externalArguments(opts: CriuOpts): string[] {
  const inodes = opts.unix_sk_ino.map(({ inode }) => inode).join(",");
  return [
    ...(opts.ext_unix_sk === true ? [`--ext-unix-sk${inodes === "" ? "" : `=${inodes}`}`] : []),
    ...opts.ext_mnt.map(({ key, val }) => `--external=mnt[${key}]:${val}`),
    ...opts.veths.map(({ if_in, if_out }) => `--veth-pair=${if_in}=${if_out}`),
    ...opts.inherit_fd.map(({ fd, key }) => `--inherit-fd=fd[${fd}]:${key}`),
    ...opts.join_ns.map(({ ns, ns_file, extra_opt }) => {
      const extra = extra_opt === undefined ? "" : `,${extra_opt}`;
      return `--join-ns=${ns}:${ns_file}${extra}`;
    }),
  ];
}

/** With lazy pages the tasks' own memory is served: the port is all that counts. */
function pageArguments(opts: CriuOpts): string[] {
  const { ps, lazy_pages } = opts;
  const mode = chosen("pre-dump-mode", opts.pre_dump_mode, PRE_DUMP_MODES);
  if (ps === undefined) return mode;
  // A port is sent as a number with a sign, of which CRIU takes 16 bits.
  const port = ps.port === undefined ? [] : [`--port=${ps.port & 0xffff}`];
  if (lazy_pages === true) return [...mode, ...port];
  return [
    ...mode,
    "--page-server",
    ...port,
    ...(ps.address === undefined ? [] : [`--address=${ps.address}`]),
    ...(ps.fd === undefined ? [] : [`--ps-socket=${ps.fd}`]),
  ];
}

function emptyNamespaces(mask: number): string[] {
  if (mask === 0) return [];
  if (mask === EMPTY_NET) return ["--empty-ns=net"];
  throw new RepriseError(
    "BAD_ARGUMENT",
    `cannot leave namespaces 0x${mask.toString(16)} empty: only the network one can be`,
  );
}

/** Bits of CRIU's mask; all of them together is the default of the field. */
const CPU_CAPABILITIES = { fpu: 1, cpu: 2, ins: 4 } as const;

function cpuCapabilities(mask: number): string {
  const names = entriesOf(CPU_CAPABILITIES).flatMap(([name, bit]) =>
    (mask & bit) === 0 ? [] : [name],
  );
  if (names.length === 0) return "none";
  return names.length === Object.keys(CPU_CAPABILITIES).length ? "all" : names.join(",");
}

function chosen(
  name: ValueName,
  value: number | undefined,
  names: Readonly<Record<number, string>>,
): string[] {
  if (value === undefined) return [];
  const text = names[value];
  if (text === undefined) {
    throw new RepriseError("BAD_ARGUMENT", `unknown value ${value} for ${name}`);
  }
  return [`--${name}=${text}`];
}

function valueArgument(name: ValueName, value: string | number | undefined): string[] {
  return value === undefined ? [] : [`--${name}=${value}`];
}

function entriesOf<K extends string, V>(table: Readonly<Record<K, V>>): [K, V][] {
  return Object.entries(table) as [K, V][];
}
