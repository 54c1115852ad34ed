// The settings of a network namespace: /proc/sys/net of whoever is in it (Documentation/networking/ip-sysctl.rst). CRIU saves
// a list of those of all devices, of new devices and of each one, told by their places alone, and two more. All others that
// can be written are saved with their names in private fields, as a fresh namespace has the machine's defaults.

import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import type { MessageInput } from "../../images/codec.ts";
import type {
  NetDeviceEntry,
  NetnsEntry,
  RepriseSysctl,
  SysctlEntry,
} from "../../images/schema/messages.generated.ts";
import { readLimits } from "../../proc/limits.ts";
import { AT_FDCWD, O_CLOEXEC, O_RDWR } from "../../sys/abi/fcntl.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { Witness, type Sight } from "../../tracee/witness.ts";
import { CONF4, CONF6 } from "./sysctl-names.ts";

const ROOT = "/proc/sys/net";
const PING_GROUPS = "ipv4/ping_group_range";
const UNIX_CONF = ["unix/max_dgram_qlen"];
/** Saved by number: SysctlType of the images. */
const CTL_STR = 5;
const CTL_32 = 6;
/** Nearly all are shorter. */
const VALUE_SIZE = 512;
/** Where values are read to, one after the other. */
const valueBytes = Buffer.alloc(VALUE_SIZE);

type ConfOfAll = Pick<NetnsEntry, "all_conf4" | "def_conf4" | "all_conf6" | "def_conf6">;
type ConfOfDevice = Pick<NetDeviceEntry, "conf4" | "conf6">;

/** Each device has more than a hundred settings: most that are open at a time, and what is left of the limit for other files. */
const MAX_OPEN = 4000;
const OTHER_FILES = 324;

/** Everything that is set in the namespace that the calling thread is in. */
export interface NetSettings {
  readonly netns: ConfOfAll &
    Pick<NetnsEntry, "unix_conf" | "ipv4_sysctl"> & {
      readonly sysctls: MessageInput<RepriseSysctl>[];
    };
  device(name: string): ConfOfDevice;
}

/**
 * The settings of a namespace, opened while nobody waits: each is read again by one call then. There are two hundred and more, and
 * finding and opening them takes longer than all the rest that is saved of a small namespace.
 */
export class OpenSettings {
  readonly #open: readonly { readonly name: string; readonly sight: Sight }[];
  readonly #witness = new Witness();
  /** Whether none is longer than what is read of each. */
  #isWhole = false;

  private constructor(open: readonly { readonly name: string; readonly fd: number }[]) {
    this.#open = open.map(({ name, fd }) => ({
      name,
      sight: this.#witness.opened(this.#witness.keep(fd), VALUE_SIZE),
    }));
  }

  /** Those of the namespace that the calling thread is in; undefined when they are too many to be held. */
  static ofThread({
    devices,
  }: {
    /** Those of single devices too. */
    readonly devices: boolean;
  }): OpenSettings | undefined {
    const open: { name: string; fd: number }[] = [];
    const limit = readLimits(process.pid).find(({ name }) => name === "RLIMIT_NOFILE");
    const most = Math.min(MAX_OPEN, Number(limit?.soft ?? 0n) - OTHER_FILES);
    for (const name of settingNames("")) {
      if (!devices && deviceOf(name) !== undefined) continue;
      const fd = openSetting(name);
      if (fd >= 0) open.push({ name, fd });
      if (open.length <= most) continue;
      new OpenSettings(open)[Symbol.dispose]();
      return undefined;
    }
    return new OpenSettings(open);
  }

  /** Whether the settings of a device are among them: it may be newer. */
  knows(device: string): boolean {
    return this.#open.some(({ name }) => name.startsWith(`ipv4/conf/${device}/`));
  }

  /** What they are now. Those of a device that went are left out. */
  read(): Map<string, string> {
    const values = new Map<string, string>();
    this.#isWhole = this.#witness.take();
    for (const { name, sight } of this.#open) {
      const bytes = this.#witness.bytes(sight);
      if (bytes.length > 0) values.set(name, valueOf(name, bytes));
    }
    return values;
  }

  /** Whether they are what was read last. */
  isUnchanged(): boolean {
    return this.#isWhole && this.#witness.holds();
  }

  [Symbol.dispose](): void {
    this.#witness[Symbol.dispose]();
  }
}

/** Reads all settings; `innerGid` gives the number of a group in the tree's user namespace. */
export function readNetSettings(
  innerGid: (gid: number) => number,
  opened?: OpenSettings,
): NetSettings {
  const values = opened?.read() ?? readAll(settingNames(""));
  const told = new Set<string>([PING_GROUPS, ...UNIX_CONF]);
  const list = (names: readonly string[], where: string): SysctlEntry[] =>
    names.map((name) => {
      told.add(`${where}/${name}`);
      return entryOf(name, values.get(`${where}/${name}`));
    });
  const conf = (of: string): ConfOfDevice => ({
    conf4: list(CONF4, `ipv4/conf/${of}`),
    conf6: list(CONF6, `ipv6/conf/${of}`),
  });
  const [all, fresh] = [conf("all"), conf("default")];
  const devices = new Map(
    [
      ...new Set(
        [...values.keys()].flatMap((name) => /^ipv[46]\/conf\/([^/]+)\//.exec(name)?.[1] ?? []),
      ),
    ]
      .filter((name) => name !== "all" && name !== "default")
      .map((name) => [name, conf(name)]),
  );
  const qlen = values.get("unix/max_dgram_qlen");
  const range = values.get(PING_GROUPS);
  return {
    netns: {
      all_conf4: all.conf4,
      all_conf6: all.conf6,
      def_conf4: fresh.conf4,
      def_conf6: fresh.conf6,
      unix_conf: qlen === undefined ? [] : [entryOf("max_dgram_qlen", qlen)],
      ipv4_sysctl: range === undefined ? [] : [pingGroups(range, innerGid)],
      sysctls: [...values]
        .filter(([name]) => !told.has(name))
        .map(([name, value]) => ({ name, value })),
    },
    device: (name) => devices.get(name) ?? { conf4: CONF4.map(missing), conf6: CONF6.map(missing) },
  };
}

/** What holds for the whole of a namespace that is to stay empty otherwise: its devices are those that the caller brings. */
export function readOwnSettings(
  innerGid: (gid: number) => number,
  opened?: OpenSettings,
): Pick<NetnsEntry, "ipv4_sysctl" | "sysctls"> {
  const values = opened?.read() ?? readAll(settingNames(""));
  const range = values.get(PING_GROUPS);
  values.delete(PING_GROUPS);
  return {
    ipv4_sysctl: range === undefined ? [] : [pingGroups(range, innerGid)],
    sysctls: [...values]
      .filter(([name]) => deviceOf(name) === undefined)
      .map(([name, value]) => ({ name, value })),
  };
}

/** Sets them again; what cannot be set is told. */
export function restoreOwnSettings(
  netns: NetnsEntry,
  restore: Pick<SettingsRestore, "outerGid">,
): void {
  restorePingGroups(netns, { outerGid: (gid) => restore.outerGid(gid), weak: true });
  // Some set others, as forwarding does: these are set again.
  for (let times = 1; times <= 2; times++) restoreOthers(netns, undefined);
}

export interface SettingsRestore {
  /** Of a group of the tree's user namespace, the number in the engine's. */
  outerGid(gid: number): number;
  /** What cannot be set is told and left out. */
  readonly weak: boolean;
}

/** Sets what holds for the whole namespace, before there are devices but the loopback one. @throws RepriseError SYSCALL */
export function restoreNetSettings(netns: NetnsEntry, restore: SettingsRestore): void {
  const { weak } = restore;
  writeConf("ipv4", "all", confOf(netns.all_conf4, netns.all_conf), { weak });
  writeConf("ipv4", "default", confOf(netns.def_conf4, netns.def_conf), { weak });
  writeConf("ipv6", "all", netns.all_conf6, { weak });
  writeConf("ipv6", "default", netns.def_conf6, { weak });
  UNIX_CONF.forEach((name, index) => {
    const value = textOf(netns.unix_conf[index]);
    if (value !== undefined) writeOne(name, value, weak);
  });
  restorePingGroups(netns, restore);
  restoreOthers(netns, undefined);
}

function restorePingGroups({ ipv4_sysctl }: NetnsEntry, restore: SettingsRestore): void {
  const range = ipv4_sysctl[0]?.sarg;
  if (range === undefined) return;
  const gids = range
    .trim()
    .split(/\s+/)
    .map((gid) => restore.outerGid(Number(gid)));
  writeOne(PING_GROUPS, gids.join("\t"), restore.weak);
}

/** Sets what belongs to a device. @throws RepriseError SYSCALL */
export function restoreDeviceSettings(
  device: NetDeviceEntry,
  netns: NetnsEntry | undefined,
  { weak }: { readonly weak: boolean },
): void {
  // The loopback device was there before the settings of new devices were.
  const isNew = device.name !== "lo";
  const fresh4 = isNew ? netns?.def_conf4 : undefined;
  const fresh6 = isNew ? netns?.def_conf6 : undefined;
  writeConf("ipv4", device.name, confOf(device.conf4, device.conf), { weak, fresh: fresh4 });
  writeConf("ipv6", device.name, device.conf6, { weak, fresh: fresh6 });
  if (netns !== undefined) restoreOthers(netns, device.name);
}

/**
 * Settings that are held back until the addresses are there: nobody asks whether an address is taken that has been in use all
 * along, and bringing a device up changes the mtu of IPv6.
 */
const HELD = ["accept_dad", "mtu"];

/** Of a device, or of "all": no address is tried out before it is used, until `releaseAddresses`. */
export function holdAddresses(device: string): void {
  if (existsSync(`${ROOT}/ipv6/conf/${device}/accept_dad`)) {
    writeOne(`ipv6/conf/${device}/accept_dad`, "0", false);
  }
}

/** Ends `holdAddresses`. @throws RepriseError SYSCALL */
export function releaseAddresses(
  device: string,
  conf6: readonly SysctlEntry[],
  { weak }: { readonly weak: boolean },
): void {
  for (const name of HELD) {
    const value = textOf(conf6[CONF6.indexOf(name)]);
    if (value !== undefined) writeOne(`ipv6/conf/${device}/${name}`, value, weak);
  }
}

/** Sets those of the others that differ from what the kernel has by itself. */
function restoreOthers(netns: NetnsEntry, device: string | undefined): void {
  const wanted = netns.sysctls.filter(({ name }) => deviceOf(name) === device);
  const now = readAll(wanted.map(({ name }) => name));
  for (const { name, value } of wanted) {
    const current = now.get(name);
    if (current === undefined) {
      log.warn(`this kernel has no setting net/${name}, which was ${value}`);
    } else if (current !== value) {
      // CRIU does not know them: what cannot be set is told, and no reason to give up.
      writeOne(name, value, true);
    }
  }
}

/** The device that a setting belongs to. */
function deviceOf(name: string): string | undefined {
  const device = /^ipv[46]\/(?:conf|neigh)\/([^/]+)\//.exec(name)?.[1];
  return device === "all" || device === "default" ? undefined : device;
}

/** A list of the images: values by place. */
function confOf(entries: readonly SysctlEntry[], old: readonly number[]): readonly SysctlEntry[] {
  if (entries.length > 0) return entries;
  // Sets of before 2016 have plain numbers, -1 for none.
  return old.map((value) => (value === -1 ? { type: CTL_32 } : { type: CTL_32, iarg: value }));
}

function writeConf(
  family: "ipv4" | "ipv6",
  of: string,
  entries: readonly SysctlEntry[],
  options: { readonly weak: boolean; readonly fresh?: readonly SysctlEntry[] | undefined },
): void {
  const names = family === "ipv4" ? CONF4 : CONF6;
  const writes: { readonly name: string; readonly value: string }[] = [];
  names.forEach((name, index) => {
    const value = textOf(entries[index]);
    // The kernel changes an mtu behind our back when IPv6 is switched off and on.
    const isFresh = name !== "mtu" && value === textOf(options.fresh?.[index]);
    if (value !== undefined && !isFresh) writes.push({ name, value });
  });
  const now = readAll(writes.map(({ name }) => `${family}/conf/${of}/${name}`));
  const late = writes.filter(({ name }) => name === LATE);
  for (const { name, value } of [...writes.filter((one) => !late.includes(one)), ...late]) {
    const path = `${family}/conf/${of}/${name}`;
    if (name === LATE || now.get(path) !== value) writeOne(path, value, options.weak);
  }
}

/** Forwarding sets it. */
const LATE = "accept_redirects";

function writeOne(name: string, value: string, weak: boolean): void {
  try {
    writeFileSync(`${ROOT}/${name}`, `${value}\n`);
  } catch (error) {
    const errno = (error as NodeJS.ErrnoException).code ?? String(error);
    if (weak) {
      log.warn(`cannot set net/${name} to ${value}: ${errno}`);
      return;
    }
    throw new RepriseError("SYSCALL", `cannot set net/${name} to ${value}: write: ${errno}`, {
      syscall: "write",
      errno,
      hint: "This kernel may not have it; with --weak-sysctls it is left out.",
      cause: error,
    });
  }
}

function entryOf(name: string, value: string | undefined): SysctlEntry {
  if (name === "stable_secret") {
    return value === undefined ? { type: CTL_STR } : { type: CTL_STR, sarg: value };
  }
  return value === undefined ? { type: CTL_32 } : { type: CTL_32, iarg: Number(value) | 0 };
}

function missing(name: string): SysctlEntry {
  return entryOf(name, undefined);
}

function textOf(entry: SysctlEntry | undefined): string | undefined {
  return entry?.sarg?.trim() ?? entry?.iarg?.toString();
}

/** "1 0" is the kernel's default: nobody. */
function pingGroups(range: string, innerGid: (gid: number) => number): SysctlEntry {
  const [first = 1, last = 0] = range.split(/\s+/).map(Number);
  if (first === 1 && last === 0) return { type: CTL_STR };
  return { type: CTL_STR, sarg: `${innerGid(first)}\t${innerGid(last)}\n` };
}

/** Names below net/ of all files. */
function settingNames(dir: string): string[] {
  return readdirSync(`${ROOT}/${dir}`, { withFileTypes: true }).flatMap((entry) => {
    const name = dir === "" ? entry.name : `${dir}/${entry.name}`;
    return entry.isDirectory() ? settingNames(name) : [name];
  });
}

/** Values by name, without the line's end. A setting that cannot be both read and written has none. */
function readAll(names: readonly string[]): Map<string, string> {
  const values = new Map<string, string>();
  for (const name of names) {
    const fd = openSetting(name);
    if (fd < 0) continue;
    const size = trySyscall("read", fd, valueBytes, valueBytes.length);
    trySyscall("close", fd);
    if (size > 0) values.set(name, valueOf(name, valueBytes.subarray(0, size)));
  }
  return values;
}

/** Refused for what only tells, and for what only the host's namespace may change. */
function openSetting(name: string): number {
  const path = Buffer.from(`${ROOT}/${name}\0`);
  return trySyscall("openat", AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
}

/** The text that was read, or the whole of one that has no room there. */
function valueOf(name: string, bytes: Buffer): string {
  const text =
    bytes.length < VALUE_SIZE
      ? bytes.toString("latin1")
      : readFileSync(`${ROOT}/${name}`, "latin1");
  return text.trimEnd();
}
