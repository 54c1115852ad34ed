// User namespaces, see user_namespaces(7): maps of user and group ids. userns-ID.img. Ids in all images are those inside of the
// root task's namespace. At restore the engine, which is outside, writes the maps of the first task, which then becomes the root of its
// namespace; what it makes from then on belongs to the namespace.

import { readFileSync, statSync, writeFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import type { UidGidExtent, UsernsEntry } from "../../images/schema/messages.generated.ts";
import { errnoOf } from "../../proc/procfs.ts";
import { AT_FDCWD, O_WRONLY } from "../../sys/abi/fcntl.ts";
import { CLONE_NEWUSER, PR_SET_DUMPABLE } from "../../sys/abi/sched.ts";
import type { Program } from "../../tracee/program.ts";
import type { IdSet } from "../../proc/status.ts";
import type { FrozenTask } from "../task/task.ts";
import type { CollectedNamespace, CollectedNamespaces } from "./collect.ts";
import type { NamespaceRoom } from "./room.ts";

export const userRoom: NamespaceRoom = {
  kind: "user",

  write(namespace, { images, namespaces }) {
    const parent = parentOf(namespace.id, namespaces);
    images.write("userns", namespace.id, [mapsInParent(mapsOf(namespace), parent)]);
  },

  // The maps are needed long before the other rooms' turn: see writeMaps.
  restore: () => undefined,
};

/** The maps of a process's user namespace, in ids of the engine's own. */
export function collectMaps(pid: number): UsernsEntry {
  const denied = readFileSync(`/proc/${pid}/setgroups`, "utf8").trim() === "deny";
  return {
    uid_map: parseMap(readFileSync(`/proc/${pid}/uid_map`, "utf8")),
    gid_map: parseMap(readFileSync(`/proc/${pid}/gid_map`, "utf8")),
    ...(denied ? { setgroups_denied: true } : {}),
  };
}

/**
 * Holds that every id of the tasks has a number in their user namespace: nobody there can take the others again.
 * @throws RepriseError UNSUPPORTED
 */
export function checkMappedIds(
  tasks: readonly FrozenTask[],
  namespaces: Pick<CollectedNamespaces, "all">,
): void {
  if (!namespaces.all.some(({ kind }) => kind === "user")) return;
  const known = new Map<number, UsernsEntry>();
  for (const { pid, innerPid, threads } of tasks) {
    const { ino } = statSync(`/proc/${pid}/ns/user`);
    const maps = known.get(ino) ?? collectMaps(pid);
    known.set(ino, maps);
    for (const { status } of threads) {
      const lost =
        unmapped(maps.uid_map, status.uid, "user") ?? unmapped(maps.gid_map, status.gid, "group");
      if (lost === undefined) continue;
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot dump pid ${innerPid} (${status.name}): its ${lost} is not mapped in its user namespace`,
        {
          pid,
          hint: "Let it have an id of its namespace before the dump (/proc/PID/uid_map, gid_map).",
        },
      );
    }
  }
}

function unmapped(map: readonly UidGidExtent[], ids: IdSet, what: string): string | undefined {
  const id = [ids.real, ids.effective, ids.saved, ids.fs].find(
    (one) => idInside(map, one) === undefined,
  );
  return id === undefined ? undefined : `${what} ${id}`;
}

/** The user namespace that another one is in; undefined when that is the engine's. */
function parentOf(id: number, namespaces: CollectedNamespaces): CollectedNamespace | undefined {
  const relation = namespaces.relations.find((one) => one.kind === CLONE_NEWUSER && one.id === id);
  return namespaces.all.find(
    ({ kind, id: other }) => kind === "user" && other === relation?.parent,
  );
}

/** The maps of a namespace of the tree, in ids of the engine's own. */
export function mapsOf({ maps, pid }: CollectedNamespace): UsernsEntry {
  return maps ?? collectMaps(pid);
}

/** Maps of a user namespace in ids of the one that it is in, as they are written; the kernel showed them in the engine's. */
function mapsInParent(maps: UsernsEntry, parent: CollectedNamespace | undefined): UsernsEntry {
  if (parent === undefined) return maps;
  const outer = mapsOf(parent);
  const translate = (extents: readonly UidGidExtent[], by: readonly UidGidExtent[]) =>
    extents.map((extent) => ({
      ...extent,
      lower_first: idInside(by, extent.lower_first) ?? NO_ID,
    }));
  return {
    ...maps,
    uid_map: translate(maps.uid_map, outer.uid_map),
    gid_map: translate(maps.gid_map, outer.gid_map),
  };
}

/** Parses /proc/PID/uid_map: first id inside, first id outside, how many. */
export function parseMap(text: string): UidGidExtent[] {
  return text
    .trim()
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => {
      const [first = 0, lower_first = 0, count = 0] = line.trim().split(/\s+/).map(Number);
      return { first, lower_first, count };
    });
}

/** The id inside of a namespace for one outside; undefined when it is not mapped. */
export function idInside(map: readonly UidGidExtent[], outside: number): number | undefined {
  const extent = map.find(
    ({ lower_first, count }) => lower_first <= outside && outside < lower_first + count,
  );
  return extent === undefined ? undefined : extent.first + outside - extent.lower_first;
}

/** The id outside of a namespace for one inside; undefined when it is not mapped. */
export function idOutside(map: readonly UidGidExtent[], inside: number): number | undefined {
  const extent = map.find(({ first, count }) => first <= inside && inside < first + count);
  return extent === undefined ? undefined : extent.lower_first + inside - extent.first;
}

export interface Ids {
  readonly uid: number;
  readonly gid: number;
}

const known = new WeakMap<CollectedNamespaces, UsernsEntry>();

/**
 * Ids as the tree sees them: those that images hold. One that has no number in the tree's user namespace becomes -1, which changes
 * nothing where it is set again.
 */
export function idsInside(namespaces: CollectedNamespaces | undefined, { uid, gid }: Ids): Ids {
  const user = namespaces?.ofRoot("user");
  if (namespaces === undefined || user === undefined) return { uid, gid };
  const maps = known.get(namespaces) ?? collectMaps(user.pid);
  known.set(namespaces, maps);
  return {
    uid: idInside(maps.uid_map, uid) ?? NO_ID,
    gid: idInside(maps.gid_map, gid) ?? NO_ID,
  };
}

const NO_ID = 0xffff_ffff;

/** The maps of the set's user namespace. @throws RepriseError IMAGE_MISSING */
export function savedMaps(set: LoadedSet, id: number): UsernsEntry {
  const maps = set.namespaces.user.get(id);
  if (maps === undefined) {
    throw new RepriseError(
      "IMAGE_MISSING",
      `cannot restore the user namespace: userns-${id}.img is missing`,
    );
  }
  return maps;
}

/** Writes the maps of a process that is the first in a new user namespace. Each can be written once, in one piece. */
export function writeMaps(pid: number, maps: UsernsEntry): void {
  // Only before the map of groups, and for ever.
  if (maps.setgroups_denied === true) writeOne(pid, "setgroups", "deny");
  if (maps.uid_map.length > 0) writeOne(pid, "uid_map", mapText(maps.uid_map));
  if (maps.gid_map.length > 0) writeOne(pid, "gid_map", mapText(maps.gid_map));
}

/** Adds the calls that write them for a process with a directory in /proc. */
export function addMaps(program: Program, directory: string, maps: UsernsEntry): void {
  const write = (name: string, text: string): void => {
    const label = `write ${name} of a user namespace`;
    const path = program.string(`${directory}/${name}`);
    const fd = program.call("openat", [AT_FDCWD, path, O_WRONLY, 0], { label });
    program.call("write", [fd, program.string(text), text.length], { label, expect: text.length });
    program.call("close", [fd]);
  };
  if (maps.setgroups_denied === true) write("setgroups", "deny");
  if (maps.uid_map.length > 0) write("uid_map", mapText(maps.uid_map));
  if (maps.gid_map.length > 0) write("gid_map", mapText(maps.gid_map));
}

/**
 * Makes the first task the root of its new namespace. It is made dumpable again, as its files in /proc would otherwise
 * belong to the root of outside.
 */
export function becomeRoot(program: Program, maps: UsernsEntry): void {
  const uid = lowestId(maps.uid_map) ?? -1;
  const gid = lowestId(maps.gid_map) ?? -1;
  // Forbidden where the namespace denies it; there are no groups then that could be dropped.
  program.call("setgroups", [0, 0], { label: "drop the groups", mayFail: true });
  program.call("setresgid", [gid, gid, gid], { label: "become root of the user namespace" });
  program.call("setresuid", [uid, uid, uid], { label: "become root of the user namespace" });
  program.call("prctl", [PR_SET_DUMPABLE, 1, 0, 0, 0], { label: "be dumpable" });
}

/** 0 wherever it is mapped; undefined where no id is, and none can be taken. */
function lowestId(map: readonly UidGidExtent[]): number | undefined {
  return map.length === 0 ? undefined : Math.min(...map.map(({ first }) => first));
}

function mapText(map: readonly UidGidExtent[]): string {
  return map.map(({ first, lower_first, count }) => `${first} ${lower_first} ${count}\n`).join("");
}

function writeOne(pid: number, name: "uid_map" | "gid_map" | "setgroups", text: string): void {
  try {
    writeFileSync(`/proc/${pid}/${name}`, text);
  } catch (error) {
    throw new RepriseError(
      "SYSCALL",
      `cannot restore the user namespace: write ${name}: ${errnoOf(error) ?? "unknown error"}`,
      {
        syscall: "write",
        hint: "The ids of the map must be mapped here too, and the restore needs CAP_SETUID and CAP_SETGID.",
        cause: error,
      },
    );
  }
}
