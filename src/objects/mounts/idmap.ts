// Mounts that show other owners than their file systems have (mount_setattr(2), MOUNT_ATTR_IDMAP): which, only statmount(2) tells, since
// Linux 6.15; mountinfo says that there is something. A user namespace of the same maps stands for them at the restore.

import { closeSync, openSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { UsernsEntry } from "../../images/schema/messages.generated.ts";
import { CLONE_NEWUSER } from "../../sys/abi/sched.ts";
import { errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { Program } from "../../tracee/program.ts";
import { runPrograms } from "../../tracee/run.ts";
import { endProcess, startSeed, workAreaAt } from "../../tracee/seed.ts";
import { inNamespace } from "../namespaces/enter.ts";
import { parseMap, writeMaps } from "../namespaces/user.ts";

const ROOT_OF_ALL = 0xffff_ffff_ffff_ffffn;
/** struct mnt_id_req. */
const REQUEST_SIZE = 24;
/** STATMOUNT_MNT_BASIC, …_UIDMAP, …_GIDMAP. */
const WANTED = 0x2n | 0x2000n | 0x4000n;
/** Offsets in struct statmount. */
const AT = { mask: 8, oldId: 56, uids: 152, gids: 160, text: 512 };
const ANSWER_SIZE = 16 * 1024;
const IDS_AT_ONCE = 256;

/**
 * The maps of the idmapped mounts in the mount namespace of a process, by the mounts' numbers in mountinfo.
 *
 * @throws RepriseError UNSUPPORTED when the kernel does not tell them
 */
export function readIdmaps(pid: number): Map<number, UsernsEntry> {
  return inNamespace("mnt", { pid }, () => {
    const found = new Map<number, UsernsEntry>();
    for (const id of listMounts()) {
      const answer = tellMount(id);
      // Those without have no maps in their answer.
      if ((answer.readBigUInt64LE(AT.mask) & WANTED) !== WANTED) continue;
      const uid_map = parseMap(linesAt(answer, AT.uids));
      if (uid_map.length === 0) continue;
      found.set(answer.readUInt32LE(AT.oldId), {
        uid_map,
        gid_map: parseMap(linesAt(answer, AT.gids)),
      });
    }
    return found;
  });
}

function listMounts(): bigint[] {
  const ids: bigint[] = [];
  const buffer = Buffer.alloc(8 * IDS_AT_ONCE);
  for (;;) {
    const request = requestFor(ROOT_OF_ALL, ids.at(-1) ?? 0n);
    const count = told("listmount", trySyscall("listmount", request, buffer, IDS_AT_ONCE, 0));
    for (let index = 0; index < count; index++) ids.push(buffer.readBigUInt64LE(8 * index));
    if (count < IDS_AT_ONCE) return ids;
  }
}

function tellMount(id: bigint): Buffer {
  const answer = Buffer.alloc(ANSWER_SIZE);
  const request = requestFor(id, WANTED);
  told("statmount", trySyscall("statmount", request, answer, answer.length, 0));
  return answer;
}

function requestFor(id: bigint, parameter: bigint): Buffer {
  const request = Buffer.alloc(REQUEST_SIZE);
  request.writeUInt32LE(REQUEST_SIZE, 0);
  request.writeBigUInt64LE(id, 8);
  request.writeBigUInt64LE(parameter, 16);
  return request;
}

function told(call: string, result: number): number {
  if (result >= 0) return result;
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump idmapped mounts: ${call}: ${errnoName(-result)}`,
    { hint: "The kernel tells their maps since Linux 6.15." },
  );
}

/** So many lines, each with a zero at its end: struct statmount tells how many, and where the first is. */
function linesAt(answer: Buffer, at: number): string {
  const lines = answer.subarray(AT.text + answer.readUInt32LE(at + 4)).toString("latin1");
  return lines.split("\0", answer.readUInt32LE(at)).join("\n");
}

/** Equal maps need one user namespace. */
function idmapKey({ uid_map, gid_map }: UsernsEntry): string {
  return JSON.stringify([uid_map, gid_map].map((map) => map.map((one) => Object.values(one))));
}

/** Where nothing of a fresh process is. */
const HELPER_AREA = { address: 0x2000_0000_0000, size: 1024 * 1024 };

/** A descriptor of a user namespace with these maps, in which nobody lives. @throws RepriseError SYSCALL */
function openIdmap(maps: UsernsEntry): number {
  const area = workAreaAt(HELPER_AREA.address, HELPER_AREA.size);
  const seed = startSeed(area, { stops: 0, remoteCalls: 0 });
  try {
    const program = new Program();
    program.call("unshare", [CLONE_NEWUSER], {
      label: "make the user namespace of an idmapped mount",
    });
    runPrograms([{ tracee: seed, program, code: area.code, base: area.programs, frame: 0 }]);
    writeMaps(seed.tid, maps);
    return openSync(`/proc/${seed.tid}/ns/user`, "r");
  } finally {
    endProcess(seed.tid);
  }
}

/** The user namespaces of the idmapped mounts of a tree, which all of its tasks have open until the mounts are there. */
export class Idmaps {
  readonly #fds = new Map<string, number>();

  /** @param keep Copies a descriptor to where the seed inherits it. */
  constructor(
    wanted: Iterable<UsernsEntry | undefined>,
    keep: (fd: number, what: string) => number,
  ) {
    for (const maps of wanted) {
      if (maps === undefined || this.#fds.has(idmapKey(maps))) continue;
      const fd = openIdmap(maps);
      try {
        this.#fds.set(idmapKey(maps), keep(fd, "the user namespace of an idmapped mount"));
      } finally {
        closeSync(fd);
      }
    }
  }

  get all(): number[] {
    return [...this.#fds.values()];
  }

  of(maps: UsernsEntry): number {
    const fd = this.#fds.get(idmapKey(maps));
    if (fd === undefined) throw new RepriseError("INTERNAL", "internal error: no such maps");
    return fd;
  }

  /** Closes the engine's own. */
  close(): void {
    for (const fd of this.#fds.values()) syscall("close", fd);
  }
}
