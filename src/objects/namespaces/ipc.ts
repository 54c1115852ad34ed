// IPC namespaces: the limits, which are sysctls of the namespace (see ipc_namespaces(7), proc_sys_kernel(5), mq_overview(7)).
// ipcns-var-ID.img. System V objects are rooms of their own (objects/ipc).

import { closeSync, readFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import type { IpcVarEntry, UsernsEntry } from "../../images/schema/messages.generated.ts";
import { errnoOf } from "../../proc/procfs.ts";
import { AT_FDCWD, O_WRONLY } from "../../sys/abi/fcntl.ts";
import { CLONE_NEWIPC } from "../../sys/abi/sched.ts";
import { Program } from "../../tracee/program.ts";
import { restoreMessageQueues, writeMessageQueues } from "../ipc/msg.ts";
import { restoreSemaphores, writeSemaphores } from "../ipc/sem.ts";
import { restoreSegments, writeSegments, type Segments } from "../ipc/shm.ts";
import { idsIn, listPath, SAME_IDS, SYSV_KINDS, type IdMap } from "../ipc/sysv.ts";
import type { Sight } from "../../tracee/witness.ts";
import { inNamespace, witnessIn } from "./enter.ts";
import { goBack, makeNested, openMade, openOwn, type MadeNamespace } from "./nested.ts";
import type { NamespaceRoom, NamespacesRestore } from "./room.ts";
import { collectMaps, idInside, idOutside, savedMaps } from "./user.ts";

export const ipcRoom: NamespaceRoom = {
  kind: "ipc",

  write({ id, pid, role }, { images, namespaces }) {
    const user = namespaces.ofRoot("user");
    const ids = user === undefined ? SAME_IDS : idsInside(collectMaps(user.pid));
    inNamespace("ipc", { pid }, () => {
      images.write("ipcns-var", id, [collectLimits(readSysctl)]);
      writeSegments(images, { id, ids, isNested: role === "nested" });
      writeSemaphores(images, { id, ids });
      writeMessageQueues(images, { id, ids });
    });
  },

  /** Only of one without objects: nothing tells that what is in them has changed. */
  saveAhead({ id, pid }, { images }) {
    const settings = new Map<string, Sight>();
    const lists: Sight[] = [];
    const witness = witnessIn("ipc", pid, (looking) => {
      for (const path of SETTINGS) {
        const sight = looking.file(`/proc/sys/${path}`);
        if (sight !== undefined) settings.set(path, sight);
      }
      for (const kind of SYSV_KINDS) {
        const list = looking.file(listPath(kind));
        if (list !== undefined) lists.push(list);
      }
    });
    if (witness === undefined) return undefined;
    if (lists.some((list) => idsIn(witness.text(list)).length > 0)) {
      witness[Symbol.dispose]();
      return undefined;
    }
    const read = (path: string): string | undefined => {
      const sight = settings.get(path);
      return sight === undefined ? undefined : witness.text(sight).trim();
    };
    images.write("ipcns-var", id, [collectLimits(read)]);
    for (const kind of SYSV_KINDS) images.write(`ipcns-${kind}`, id, []);
    return {
      finish: () => witness.holds(),
      [Symbol.dispose]: () => witness[Symbol.dispose](),
    };
  },

  restore(namespaces, restore) {
    for (const made of makeNested("ipc", namespaces, restore)) fill(made, restore);
  },
};

function fill(made: MadeNamespace, restore: NamespacesRestore): void {
  const { id } = made.namespace;
  const entry = restore.set.namespaces.ipc.get(id);
  if (entry === undefined) {
    throw new RepriseError(
      "IMAGE_MISSING",
      `cannot restore the IPC namespace: ipcns-var-${id}.img is missing`,
    );
  }
  const fd = openMade(made, restore.rootPid);
  const ends: (() => void)[] = [];
  restore.atEnd({
    release: () => {
      ends.forEach((end) => end());
      closeSync(fd);
    },
    failed: () => closeSync(fd),
  });
  restoreLimits(entry, { made, fd, restore });
  const segments = restoreObjects({ id, fd, isNested: made.place !== undefined }, restore);
  // Segments that were removed already are so again when they are attached.
  ends.push(() => inNamespace("ipc", { fd }, () => segments.removeDead()));
}

type NumberField = Exclude<keyof IpcVarEntry, "sem_ctls" | "shm_ctlmax" | "shm_ctlall">;

const KERNEL: readonly (readonly [NumberField, string])[] = [
  ["msg_ctlmax", "kernel/msgmax"],
  ["msg_ctlmnb", "kernel/msgmnb"],
  ["msg_ctlmni", "kernel/msgmni"],
  ["auto_msgmni", "kernel/auto_msgmni"],
  ["shm_ctlmni", "kernel/shmmni"],
  ["shm_rmid_forced", "kernel/shm_rmid_forced"],
];

const MQUEUE: readonly (readonly [NumberField, string])[] = [
  ["mq_queues_max", "fs/mqueue/queues_max"],
  ["mq_msg_max", "fs/mqueue/msg_max"],
  ["mq_msgsize_max", "fs/mqueue/msgsize_max"],
  ["mq_msg_default", "fs/mqueue/msg_default"],
  ["mq_msgsize_default", "fs/mqueue/msgsize_default"],
];

/** -1 (nothing wanted) cannot be written, and is left out. */
const NEXT_IDS: readonly (readonly [NumberField, string])[] = [
  ["msg_next_id", "kernel/msg_next_id"],
  ["sem_next_id", "kernel/sem_next_id"],
  ["shm_next_id", "kernel/shm_next_id"],
];

/** All of them. */
const SETTINGS: readonly string[] = [
  ...[...KERNEL, ...MQUEUE, ...NEXT_IDS].map(([, path]) => path),
  "kernel/sem",
  "kernel/shmmax",
  "kernel/shmall",
];

function collectLimits(read: (path: string) => string | undefined): IpcVarEntry {
  const fields = [...KERNEL, ...MQUEUE, ...NEXT_IDS].flatMap(([field, path]) => {
    const text = read(path);
    const value = Number(text);
    return text === undefined || value < 0 ? [] : [[field, value] as const];
  });
  const numbers = Object.fromEntries(fields) as Partial<Record<NumberField, number>>;
  return {
    msg_ctlmax: 0,
    msg_ctlmnb: 0,
    msg_ctlmni: 0,
    auto_msgmni: 0,
    shm_ctlmni: 0,
    shm_rmid_forced: 0,
    mq_queues_max: 0,
    mq_msg_max: 0,
    mq_msgsize_max: 0,
    ...numbers,
    sem_ctls: (read("kernel/sem") ?? "").split(/\s+/).map(Number),
    shm_ctlmax: BigInt(read("kernel/shmmax") ?? 0),
    shm_ctlall: BigInt(read("kernel/shmall") ?? 0),
  };
}

/**
 * Written by the root task: in a user namespace these files belong to its root alone. What is right already is left: some take
 * nothing but their own value, as auto_msgmni does.
 */
function restoreLimits(
  entry: IpcVarEntry,
  { made, fd: ipc, restore }: { made: MadeNamespace; fd: number; restore: NamespacesRestore },
): void {
  const wanted = limitsOf(entry);
  const differing = inNamespace("ipc", { fd: ipc }, () =>
    wanted.filter(([path, value]) => isOther(path, value)),
  );
  if (differing.length === 0) return;
  const program = new Program();
  const comesBack = made.place !== undefined && made.namespace.owner === undefined;
  const own = comesBack ? openOwn(program, "ipc") : undefined;
  if (made.place !== undefined)
    program.call("setns", [made.place, CLONE_NEWIPC], { label: "go to another IPC namespace" });
  for (const [path, value] of differing) {
    const label = `set ${path} of the IPC namespace to ${value}`;
    const hint = "A read-only /proc/sys may be in the way.";
    const name = program.string(`/proc/sys/${path}`);
    const fd = program.call("openat", [AT_FDCWD, name, O_WRONLY, 0], { label, hint });
    program.call("write", [fd, program.string(value), value.length], {
      label,
      hint,
      expect: value.length,
    });
    program.call("close", [fd]);
  }
  if (own !== undefined) goBack(program, "ipc", own);
  restore.runFor(made.namespace, program);
}

function limitsOf(entry: IpcVarEntry): [path: string, value: string][] {
  const numbers = [...KERNEL, ...MQUEUE, ...NEXT_IDS].flatMap(
    ([field, path]): [string, string][] => {
      const value = entry[field];
      // 0 is what stands for a sysctl that the kernel of the dump did not have.
      if (value === undefined || (value === 0 && path.startsWith("fs/mqueue/"))) return [];
      return [[path, String(value)]];
    },
  );
  return [
    ["kernel/sem", entry.sem_ctls.join(" ")],
    ["kernel/shmmax", entry.shm_ctlmax.toString()],
    ["kernel/shmall", entry.shm_ctlall.toString()],
    ...numbers,
  ];
}

function isOther(path: string, value: string): boolean {
  const now = readSysctl(path);
  if (now === undefined) log.warn(`this kernel has no ${path}: it is not set to ${value}`);
  return now !== undefined && now.split(/\s+/).join(" ") !== value;
}

function readSysctl(path: string): string | undefined {
  try {
    return readFileSync(`/proc/sys/${path}`, "utf8").trim();
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

/** The engine makes them: it may choose their ids. */
function restoreObjects(
  { id, fd, isNested }: { readonly id: number; readonly fd: number; readonly isNested: boolean },
  restore: NamespacesRestore,
): Segments {
  const user = restore.plan.ofRoot("user");
  const ids = user === undefined ? SAME_IDS : idsOutside(savedMaps(restore.set, user.id));
  return inNamespace("ipc", { fd }, () => {
    restoreSemaphores(restore.set.reader, { id, ids });
    restoreMessageQueues(restore.set.reader, { id, ids });
    return restoreSegments(restore.set, { id, ids, isNested, isShared: false });
  });
}

const NOBODY = 65534;

function idsInside(maps: UsernsEntry): IdMap {
  return {
    uid: (id) => idInside(maps.uid_map, id) ?? NOBODY,
    gid: (id) => idInside(maps.gid_map, id) ?? NOBODY,
  };
}

function idsOutside(maps: UsernsEntry): IdMap {
  return {
    uid: (id) => idOutside(maps.uid_map, id) ?? NOBODY,
    gid: (id) => idOutside(maps.gid_map, id) ?? NOBODY,
  };
}
