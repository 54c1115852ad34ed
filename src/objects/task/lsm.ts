// Labels of Linux security modules: AppArmor's profile or SELinux's context of a thread, and the context for the sockets that it makes.
// They are read and set through /proc/PID/attr (proc(5), Documentation/admin-guide/LSM); in the images they stand with the credentials.
//
// SELinux lets a process with several threads change to a bounded context only, so that comes before the threads are made. AppArmor's
// belong to each thread. Files in attr are written by the thread that has opened them.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../../errors.ts";
import { Lsmtype, type CredsEntry } from "../../images/schema/messages.generated.ts";
import { O_CLOEXEC, O_WRONLY } from "../../sys/abi/fcntl.ts";
import type { Argument, Program } from "../../tracee/program.ts";

/** The module that labels threads. */
export type Lsm = "none" | "apparmor" | "selinux";

const CODES: Readonly<Record<Lsm, number>> = {
  none: Lsmtype.NO_LSM,
  apparmor: Lsmtype.APPARMOR,
  selinux: Lsmtype.SELINUX,
};

/** The number of a module in the inventory. */
export function lsmCode(lsm: Lsm): number {
  return CODES[lsm];
}

/** The module of an inventory. */
export function lsmOfCode(code: number | undefined): Lsm {
  return code === Lsmtype.APPARMOR ? "apparmor" : code === Lsmtype.SELINUX ? "selinux" : "none";
}

let ownHost: Lsm | undefined;

/** The module of the running kernel, by its files below `root`. @default "/" */
export function hostLsm(root = "/"): Lsm {
  if (root !== "/") return findLsm(root);
  return (ownHost ??= findLsm(root));
}

function findLsm(root: string): Lsm {
  const own = join(root, "proc/self/attr");
  if (
    existsSync(join(root, "sys/kernel/security/apparmor")) ||
    readLabel(join(own, "apparmor/current")) !== undefined
  )
    return "apparmor";
  // With SELinux off the file cannot be read (EINVAL), or says "kernel".
  return isContext(readLabel(join(own, "current"))) ? "selinux" : "none";
}

/** Fields of creds_entry that hold labels. */
export type Labels = Pick<CredsEntry, "lsm_profile" | "lsm_sockcreate">;

/**
 * The labels of a thread.
 *
 * @param thread its ids; `lsm` is the kernel's, `root` as for `hostLsm`
 * @throws RepriseError UNSUPPORTED for a context that is none
 */
export function readLabels(
  thread: { readonly pid: number; readonly tid: number },
  lsm: Lsm = hostLsm(),
  root = "/",
): Labels {
  if (lsm === "none") return {};
  const directory = join(root, `proc/${thread.pid}/task/${thread.tid}/attr`);
  const current = readLabel(join(directory, "current"));
  if (lsm === "apparmor") {
    const label = readLabel(join(directory, "apparmor/current")) ?? current;
    // The mode stands behind the name: `docker-default (enforce)`.
    const profile = label?.replace(/ \(\w+\)$/, "");
    return profile === undefined || profile === "unconfined" ? {} : { lsm_profile: profile };
  }
  if (!isContext(current)) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump pid ${thread.pid}: "${current ?? ""}" is no SELinux context`,
      { pid: thread.pid, hint: "Load a policy, or start the machine with selinux=0." },
    );
  }
  const sockcreate = readLabel(join(directory, "sockcreate"));
  return {
    lsm_profile: current,
    ...(sockcreate === undefined ? {} : { lsm_sockcreate: sockcreate }),
  };
}

/** Without the zero or newline at its end; undefined for an empty one, and where the kernel has none. */
function readLabel(file: string): string | undefined {
  try {
    const label = readFileSync(file, "utf8").replace(/[\0\n]+$/, "");
    return label === "" ? undefined : label;
  } catch {
    return undefined; // ENOENT: not built in; EINVAL: not in use
  }
}

/** `user:role:type:range`, of which the range has colons itself. */
function isContext(label: string | undefined): label is string {
  return label !== undefined && label.split(":").length > 3;
}

/** What `--lsm-profile` asks for. */
export interface WantedProfile {
  readonly lsm: Lsm;
  /** Without one, tasks have the restorer's. */
  readonly name: string | undefined;
}

/** Reads `TYPE:NAME`. @throws RepriseError BAD_ARGUMENT */
export function parseProfile(text: string): WantedProfile {
  const [, type = "", name = ""] = /^([^:]*):(.*)$/s.exec(text) ?? [];
  if (type === "none") return { lsm: "none", name: undefined };
  if ((type === "apparmor" || type === "selinux") && name !== "") return { lsm: type, name };
  throw new RepriseError("BAD_ARGUMENT", `invalid argument for --lsm-profile: ${text}`, {
    hint: "It must be apparmor:PROFILE, selinux:CONTEXT, or none: for the restorer's own.",
  });
}

/** Which labels restored tasks get. */
export class LabelPlan {
  readonly #host: Lsm;
  readonly #image: Lsm;
  readonly #wanted: WantedProfile | undefined;

  /** @throws RepriseError KERNEL_FEATURE when the caller wants a module that this kernel lacks */
  constructor(options: {
    readonly host: Lsm;
    readonly image: Lsm;
    readonly wanted?: WantedProfile | undefined;
  }) {
    const { host, image, wanted } = options;
    this.#host = host;
    this.#image = image;
    this.#wanted = wanted;
    if (wanted !== undefined && wanted.lsm !== "none" && wanted.lsm !== host) {
      throw new RepriseError(
        "KERNEL_FEATURE",
        `cannot give tasks the ${wanted.lsm} profile ${wanted.name}: this kernel has ${host === "none" ? "no such module in use" : host}`,
        { hint: "Leave --lsm-profile out, or restore without a profile by --lsm-profile none:." },
      );
    }
  }

  /** Whether SELinux's context is set before the threads are made. */
  get isEarly(): boolean {
    return this.#host === "selinux";
  }

  /**
   * The labels of a thread.
   *
   * @throws RepriseError KERNEL_FEATURE when it had one of a module that this kernel lacks
   */
  of(creds: Labels | undefined, pid: number): Labels {
    const wanted = this.#wanted;
    const profile = wanted === undefined ? creds?.lsm_profile : wanted.name;
    const sockcreate = wanted?.lsm === "none" ? undefined : creds?.lsm_sockcreate;
    const label = profile ?? sockcreate;
    if (label === undefined) return {};
    // The caller's own profile is the kernel's: the constructor has seen to it.
    const from = wanted?.name === undefined ? this.#image : wanted.lsm;
    if (this.#host === "none" || from !== this.#host) {
      throw new RepriseError(
        "KERNEL_FEATURE",
        `cannot restore pid ${pid} with its ${from === "none" ? "security" : from} label ${label}: this kernel has ${this.#host === "none" ? "no security module with labels in use" : this.#host}`,
        {
          pid,
          hint: "Restore on a machine with that module, or without its protection by --lsm-profile none:.",
        },
      );
    }
    return {
      ...(profile === undefined ? {} : { lsm_profile: this.#render(profile) }),
      ...(sockcreate === undefined ? {} : { lsm_sockcreate: sockcreate }),
    };
  }

  /** What is written into `current`. */
  #render(profile: string): string {
    return this.#host === "apparmor" ? `changeprofile ${profile}` : profile;
  }
}

/** A label and the descriptor that it is to be written to. */
export interface OpenedLabel {
  readonly fd: Argument;
  readonly text: string;
  readonly file: string;
}

/**
 * Adds the calls that open what the labels of the running thread are written to.
 *
 * @param proc descriptor of /proc; `places` are numbers for the descriptors, by default the kernel chooses
 */
export function openLabels(
  program: Program,
  labels: Labels,
  { proc, places }: { readonly proc: Argument; readonly places?: readonly number[] },
): OpenedLabel[] {
  const wanted = [
    { file: "current", text: labels.lsm_profile },
    { file: "sockcreate", text: labels.lsm_sockcreate },
  ];
  return wanted.flatMap(({ file, text }, index): OpenedLabel[] => {
    if (text === undefined) return [];
    const path = program.string(`thread-self/attr/${file}`);
    const label = `open attr/${file}`;
    const opened = program.call("openat", [proc, path, O_WRONLY | O_CLOEXEC, 0], { label });
    const place = places?.[index];
    if (place === undefined) return [{ fd: opened, text, file }];
    program.call("dup3", [opened, place, O_CLOEXEC], { label });
    program.call("close", [opened], { label });
    return [{ fd: place, text, file }];
  });
}

/** Adds the calls that set labels: after the credentials, before no_new_privs, which forbids to change a profile. */
export function writeLabels(program: Program, labels: readonly OpenedLabel[]): void {
  for (const { fd, text, file } of labels) {
    const bytes = Buffer.from(text);
    program.call("write", [fd, program.data(bytes), bytes.length], {
      label: `set the security label "${text}" (attr/${file})`,
      hint: "The profile must be loaded here, and changing to it be allowed. --lsm-profile names another one.",
      expect: bytes.length,
    });
    program.call("close", [fd]);
  }
}
