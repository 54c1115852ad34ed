// The proc file systems of further pid namespaces: such a one can be mounted only by a process in the namespace (proc(5)), so it comes when
// the tree is there, with what is mounted on it. A helper in the namespace makes it in the mounts of the root task, where it may, and
// goes to the mount namespace that it belongs in.

import { Fstype } from "../../images/schema/messages.generated.ts";
import { AT_FDCWD } from "../../sys/abi/fcntl.ts";
import * as abi from "../../sys/abi/mount.ts";
import { CLONE_NEWNS } from "../../sys/abi/sched.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { pathArgument } from "../files/path.ts";
import { ALL_ATTRIBUTES, bind, move, setAttributes } from "./calls.ts";
import { RepriseError } from "../../errors.ts";
import type { MountNode, MountPlan } from "./plan.ts";
import { attributesOf, flagsOf } from "./record.ts";

/** What is put in its place late in one mount namespace. */
export interface LateMounts {
  readonly mountNamespace: number;
  readonly pidNamespace: number;
  /** Adds the calls for a helper in the pid namespace; `namespace` is the descriptor of the mount namespace, if it is not the root task's. */
  add(program: Program, namespace: number | undefined): void;
}

/** The late mounts of a tree, by the namespaces that they need. */
export function lateMounts(plan: MountPlan, kept: ReadonlyMap<MountNode, number>): LateMounts[] {
  return plan.namespaces.flatMap(({ id, mounts }) => {
    const late = mounts.filter(({ isLate }) => isLate);
    const pids = new Set(
      late.flatMap(({ source: { from } }) => (from.kind === "late" ? [from.pidNamespace] : [])),
    );
    const [pidNamespace] = pids;
    if (pidNamespace === undefined) return [];
    if (pids.size > 1) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot restore mount namespace ${id}: it has proc file systems of several pid namespaces`,
      );
    }
    return [
      {
        mountNamespace: id,
        pidNamespace,
        add: (program, namespace) => addMounts(program, late, { kept, namespace }),
      },
    ];
  });
}

function addMounts(
  program: Program,
  late: readonly MountNode[],
  { kept, namespace }: { kept: ReadonlyMap<MountNode, number>; namespace: number | undefined },
): void {
  const proc = addProc(program, late);
  const made = late.map((node): readonly [MountNode, Argument] => {
    const { entry, below, source } = node;
    if (source.from.kind !== "late") return [node, kept.get(node) ?? -1];
    const fd = bind(program, proc, { below, what: entry.mountpoint });
    const attributes = { set: attributesOf(entry), clear: ALL_ATTRIBUTES };
    setAttributes(program, fd, { ...attributes, propagation: abi.MS_PRIVATE }, entry.mountpoint);
    return [node, fd];
  });
  if (namespace !== undefined)
    program.call("setns", [namespace, CLONE_NEWNS], { label: "go to another mount namespace" });
  for (const [{ entry }, fd] of made) {
    const place = pathArgument(program, entry.mountpoint);
    move(program, fd, { to: AT_FDCWD, place, what: entry.mountpoint });
    program.call("close", [fd]);
  }
}

/** A new proc file system, nowhere yet. */
function addProc(program: Program, late: readonly MountNode[]): Argument {
  const first = late.find(({ source }) => source.from.kind === "late") as MountNode;
  const entry = first.source.from.kind === "late" ? first.source.from.entry : first.entry;
  const label = `mount ${Fstype.PROC === entry.fstype ? "proc" : entry.source} for ${entry.mountpoint}`;
  const context = program.call("fsopen", [program.string("proc"), 0], { label });
  const source = [program.string("source"), pathArgument(program, entry.source), 0] as const;
  program.call("fsconfig", [context, abi.FSCONFIG_SET_STRING, ...source], { label });
  for (const option of entry.options.split(",").filter((one) => one !== "")) {
    const [key = "", value] = option.split("=");
    if (value === undefined) continue;
    const args = [context, abi.FSCONFIG_SET_STRING, program.string(key), program.string(value), 0];
    program.call("fsconfig", args, { label });
  }
  if ((flagsOf(entry).superblock & abi.MS_RDONLY) !== 0)
    program.call("fsconfig", [context, abi.FSCONFIG_SET_FLAG, program.string("ro"), 0, 0], {
      label,
    });
  program.call("fsconfig", [context, abi.FSCONFIG_CMD_CREATE, 0, 0, 0], { label });
  const mount = program.call("fsmount", [context, 0, 0], { label });
  program.call("close", [context]);
  return mount;
}
