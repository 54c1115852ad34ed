// Credentials of a thread: user and group ids, capability sets, secure bits; see credentials(7), capabilities(7). Each thread
// has its own. Ids are asked for by the thread itself, so that they are those of its user namespace.
//
// The order at restore is forced: ids first, with NO_SETUID_FIXUP so that capabilities outlive the change; then ambient
// capabilities (the final secure bits may forbid to raise any); then the final secure bits and the drops of the bounding
// set, both of which need CAP_SETPCAP; and last the final sets, which may lack it. Files in /proc/self belong to root
// afterwards, the process is not "dumpable" any more and its parent death signal is gone: oom_score_adj and its like are
// written before, dumpable and parent death signal set after. no_new_privs comes after that, and then seccomp.

import { RepriseError } from "../../errors.ts";
import type { CredsEntry } from "../../images/schema/messages.generated.ts";
import type { BriefStatus, TaskStatus } from "../../proc/status.ts";
import {
  CAP_LAST_CAP,
  CAP_SETPCAP,
  LINUX_CAPABILITY_VERSION_3,
  PR_CAP_AMBIENT,
  PR_CAP_AMBIENT_CLEAR_ALL,
  PR_CAP_AMBIENT_RAISE,
  PR_CAPBSET_DROP,
  PR_GET_SECUREBITS,
  PR_SET_NO_NEW_PRIVS,
  PR_SET_SECUREBITS,
  SECBIT_NO_SETUID_FIXUP,
} from "../../sys/abi/sched.ts";
import type { Pointer, Program, ProgramResult } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";

/** setfsuid and setfsgid with this id change nothing and tell what is set. */
const ASK = -1;

/**
 * Asks for the credentials of threads that run the program, which have as many groups as `like` says. What their status says
 * already is added to the answer.
 */
export function probeCreds(
  program: Program,
  like: Pick<BriefStatus, "groups">,
): (result: ProgramResult, status: BriefStatus) => CredsEntry {
  const uids = probeIds(program, "getresuid");
  const gids = probeIds(program, "getresgid");
  const fsuid = program.call("setfsuid", [ASK], { label: "read the file system user id" });
  const fsgid = program.call("setfsgid", [ASK], { label: "read the file system group id" });
  const securebits = program.call("prctl", [PR_GET_SECUREBITS, 0, 0, 0, 0], {
    label: "read the secure bits",
  });
  const groups = probeGroups(program, like.groups.length);
  return (result, status) => {
    const [uid = 0, euid = 0, suid = 0] = uids(result);
    const [gid = 0, egid = 0, sgid = 0] = gids(result);
    return {
      uid,
      gid,
      euid,
      egid,
      suid,
      sgid,
      fsuid: result.value(fsuid) >>> 0,
      fsgid: result.value(fsgid) >>> 0,
      cap_inh: halves(status.capInh),
      cap_prm: halves(status.capPrm),
      cap_eff: halves(status.capEff),
      cap_bnd: halves(status.capBnd),
      secbits: result.value(securebits),
      groups: groups(result),
      ...(status.noNewPrivs ? { no_new_privs: 1 } : {}),
      cap_amb: halves(status.capAmb),
    };
  };
}

/** Whether what a status says of credentials is the same, so that equal answers are equal credentials. */
export function hasSameCredentials(a: BriefStatus, b: BriefStatus): boolean {
  return (
    a.capInh === b.capInh &&
    a.capPrm === b.capPrm &&
    a.capEff === b.capEff &&
    a.capBnd === b.capBnd &&
    a.capAmb === b.capAmb &&
    a.noNewPrivs === b.noNewPrivs
  );
}

export interface RestoreCredsOptions {
  /** Highest capability that this kernel knows (/proc/sys/kernel/cap_last_cap). */
  readonly lastCap?: number;
  /** The credentials of a restore that may not change them (--unprivileged): the saved ones must be the same. */
  readonly fixed?: TaskStatus | undefined;
  /** What the thread has that runs the program, whose user namespace is the engine's: the same is not set again. */
  readonly known?: TaskStatus | undefined;
}

/**
 * Sets all credentials but no_new_privs. Needs CAP_SETUID, CAP_SETGID and CAP_SETPCAP, and every capability that is given.
 *
 * @returns a probe that throws REMOTE_CALL when groups or file system ids, whose calls may fail unheard, are not the wanted.
 */
export function restoreCreds(
  program: Program,
  creds: CredsEntry,
  options: RestoreCredsOptions = {},
): Probe<void> {
  const lastCap = options.lastCap ?? CAP_LAST_CAP;
  if (options.fixed !== undefined) {
    giveUpCapabilities(program, creds, { fixed: options.fixed, lastCap });
    return () => undefined;
  }
  if (options.known !== undefined && isSame(creds, options.known)) {
    // Of these a status says nothing.
    setSecurebits(program, creds.secbits);
    return () => undefined;
  }
  const check = restoreIds(program, creds);
  restoreAmbient(program, creds, lastCap);
  setSecurebits(program, creds.secbits);
  for (const cap of capabilities(~mask(creds.cap_bnd), lastCap)) {
    program.call("prctl", [PR_CAPBSET_DROP, cap, 0, 0, 0], {
      label: `drop capability ${cap} from the bounding set`,
    });
  }
  setCapabilities(program, {
    effective: mask(creds.cap_eff),
    permitted: mask(creds.cap_prm),
    inheritable: mask(creds.cap_inh),
  });
  return check;
}

/** Whether a thread has credentials already, all but the secure bits. */
function isSame(creds: CredsEntry, known: TaskStatus): boolean {
  const { uid, gid, groups } = known;
  const list = (ids: readonly number[]): string => [...ids].sort((a, b) => a - b).join(" ");
  return (
    [creds.uid, creds.euid, creds.suid, creds.fsuid].join(" ") === idText(uid) &&
    [creds.gid, creds.egid, creds.sgid, creds.fsgid].join(" ") === idText(gid) &&
    list(creds.groups) === list(groups) &&
    mask(creds.cap_inh) === known.capInh &&
    mask(creds.cap_prm) === known.capPrm &&
    mask(creds.cap_eff) === known.capEff &&
    mask(creds.cap_bnd) === known.capBnd &&
    mask(creds.cap_amb) === known.capAmb
  );
}

/** For a task that has all but its capabilities from a restore without privileges. */
function giveUpCapabilities(
  program: Program,
  creds: CredsEntry,
  { fixed, lastCap }: { readonly fixed: TaskStatus; readonly lastCap: number },
): void {
  refuseOthers(creds, fixed);
  program.call("prctl", [PR_GET_SECUREBITS, 0, 0, 0, 0], {
    label: `find the secure bits 0x${creds.secbits.toString(16)}`,
    expect: creds.secbits,
    hint: HINT_PRIVILEGES,
  });
  program.call("prctl", [PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0], {
    label: "clear the ambient capabilities",
  });
  setCapabilities(program, {
    effective: mask(creds.cap_eff),
    permitted: mask(creds.cap_prm),
    inheritable: mask(creds.cap_inh),
  });
  for (const cap of capabilities(mask(creds.cap_amb), lastCap)) {
    program.call("prctl", [PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0], {
      label: `make capability ${cap} ambient`,
    });
  }
}

const HINT_PRIVILEGES =
  "To change credentials takes CAP_SETUID, CAP_SETGID and CAP_SETPCAP: restore as root, or as the user that the process ran as.";

function refuseOthers(creds: CredsEntry, { uid, gid, groups, capBnd }: TaskStatus): void {
  const list = (ids: readonly number[]): string => [...ids].sort((a, b) => a - b).join(" ");
  const pairs = [
    ["user ids", [creds.uid, creds.euid, creds.suid, creds.fsuid].join(" "), idText(uid)],
    ["group ids", [creds.gid, creds.egid, creds.sgid, creds.fsgid].join(" "), idText(gid)],
    ["groups", list(creds.groups), list(groups)],
    ["bounding set", mask(creds.cap_bnd).toString(16), capBnd.toString(16)],
  ];
  for (const [what, saved, own] of pairs) {
    if (saved === own) continue;
    throw new RepriseError(
      "NOT_PERMITTED",
      `cannot restore a process with the ${what} ${saved}: this one has ${own}, and may not change them`,
      { hint: HINT_PRIVILEGES },
    );
  }
}

function idText({ real, effective, saved, fs }: TaskStatus["uid"]): string {
  return [real, effective, saved, fs].join(" ");
}

/** Sets no_new_privs if the image has it: after everything else, before seccomp. */
export function restoreNoNewPrivs(program: Program, creds: CredsEntry): void {
  if ((creds.no_new_privs ?? 0) === 0) return;
  program.call("prctl", [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0], { label: "set no_new_privs" });
}

function probeIds(program: Program, call: "getresuid" | "getresgid"): Probe<number[]> {
  const places = [0, 1, 2].map(() => program.output(4, 4));
  program.call(call, places, { label: "read the user and group ids" });
  return (result) => places.map((place) => result.bytes(place, 4).readUInt32LE(0));
}

function probeGroups(program: Program, count: number): Probe<number[]> {
  const place = program.output(Math.max(count, 1) * 4);
  // A size of 0 asks for the number alone.
  const found = program.call("getgroups", [Math.max(count, 1), place], {
    label: "read the groups",
    mayFail: true,
  });
  return (result) => {
    const length = result.value(found);
    if (length < 0) return [-1];
    const bytes = result.bytes(place, length * 4);
    return Array.from({ length }, (_, index) => bytes.readUInt32LE(index * 4));
  };
}

function restoreIds(program: Program, creds: CredsEntry): Probe<void> {
  const { uid, euid, suid, gid, egid, sgid, fsuid, fsgid } = creds;
  const wanted = [...creds.groups].sort((a, b) => a - b);
  // May be forbidden in a user namespace, where the groups may be right already.
  program.call(
    "setgroups",
    [wanted.length, wanted.length === 0 ? 0 : program.data(words(wanted))],
    {
      label: "set the groups",
      mayFail: true,
    },
  );
  const groups = probeGroups(program, wanted.length);
  setSecurebits(program, SECBIT_NO_SETUID_FIXUP);
  program.call("setresgid", [gid, egid, sgid], {
    label: `set the group ids ${gid}, ${egid}, ${sgid}`,
  });
  program.call("setfsgid", [fsgid], { label: `set the file system group id ${fsgid}` });
  program.call("setresuid", [uid, euid, suid], {
    label: `set the user ids ${uid}, ${euid}, ${suid}`,
  });
  program.call("setfsuid", [fsuid], { label: `set the file system user id ${fsuid}` });
  const fsuidNow = program.call("setfsuid", [ASK], { label: "read the file system user id" });
  const fsgidNow = program.call("setfsgid", [ASK], { label: "read the file system group id" });
  return (result) => {
    if (groups(result).join() !== wanted.join()) throw notSet("the groups", "setgroups");
    if (result.value(fsuidNow) >>> 0 !== fsuid) throw notSet("the file system user id", "setfsuid");
    if (result.value(fsgidNow) >>> 0 !== fsgid)
      throw notSet("the file system group id", "setfsgid");
  };
}

/** Capabilities can be raised to ambient when they are permitted and inheritable. CAP_SETPCAP is kept for what follows. */
function restoreAmbient(program: Program, creds: CredsEntry, lastCap: number): void {
  program.call("prctl", [PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0], {
    label: "clear the ambient capabilities",
  });
  const ambient = mask(creds.cap_amb);
  if (ambient === 0n) return;
  const kept = 1n << BigInt(CAP_SETPCAP);
  setCapabilities(program, {
    effective: mask(creds.cap_eff) | kept,
    permitted: mask(creds.cap_prm) | kept,
    inheritable: mask(creds.cap_inh),
  });
  for (const cap of capabilities(ambient, lastCap)) {
    program.call("prctl", [PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0], {
      label: `make capability ${cap} ambient`,
    });
  }
}

/** Adds the call that sets the secure bits. */
export function setSecurebits(program: Program, bits: number): void {
  program.call("prctl", [PR_SET_SECUREBITS, bits, 0, 0, 0], {
    label: `set the secure bits 0x${bits.toString(16)}`,
    hint: "This needs CAP_SETPCAP: restore as root.",
  });
}

export interface CapabilitySets {
  readonly effective: bigint;
  readonly permitted: bigint;
  readonly inheritable: bigint;
}

/** Adds the call that sets all sets of capabilities but the ambient one. */
export function setCapabilities(program: Program, sets: CapabilitySets): void {
  const header: Pointer = program.data(CAPABILITY_HEADER);
  program.call("capset", [header, program.data(capabilityData(sets))], {
    label: "set the capabilities",
    hint: "The process had capabilities that the restoring side lacks. Run with at least those.",
  });
}

/** struct __user_cap_data_struct, twice. */
function capabilityData({ effective, permitted, inheritable }: CapabilitySets): Uint8Array {
  const bytes = Buffer.alloc(CAPABILITY_DATA_SIZE);
  [effective, permitted, inheritable].forEach((set, index) => {
    bytes.writeUInt32LE(Number(set & 0xffff_ffffn), index * 4);
    bytes.writeUInt32LE(Number((set >> 32n) & 0xffff_ffffn), CAPABILITY_DATA_SIZE / 2 + index * 4);
  });
  return bytes;
}

const CAPABILITY_DATA_SIZE = 24;

/** Numbers of the capabilities in a set that this kernel knows; of the same set as the last time for most threads. */
function capabilities(set: bigint, lastCap: number): readonly number[] {
  if (listed?.set !== set || listed.lastCap !== lastCap) {
    const all = Array.from({ length: lastCap + 1 }, (_, cap) => cap);
    const numbers = all.filter((cap) => (set & (1n << BigInt(cap))) !== 0n);
    listed = { set, lastCap, numbers };
  }
  return listed.numbers;
}

let listed:
  | { readonly set: bigint; readonly lastCap: number; readonly numbers: readonly number[] }
  | undefined;

function halves(set: bigint): number[] {
  return [Number(set & 0xffff_ffffn), Number(set >> 32n)];
}

function mask([low = 0, high = 0]: readonly number[]): bigint {
  return BigInt(low >>> 0) | (BigInt(high >>> 0) << 32n);
}

function words(values: readonly number[]): Uint8Array {
  const bytes = Buffer.alloc(values.length * 4);
  values.forEach((value, index) => bytes.writeUInt32LE(value >>> 0, index * 4));
  return bytes;
}

const CAPABILITY_HEADER = words([LINUX_CAPABILITY_VERSION_3, 0]);

function notSet(what: string, call: string): RepriseError {
  return new RepriseError(
    "REMOTE_CALL",
    `cannot set ${what} of a restored process: ${call}: EPERM`,
    {
      syscall: call,
      errno: "EPERM",
      hint: "In a user namespace, the ids must be mapped, and setgroups allowed (/proc/PID/setgroups).",
    },
  );
}
