// Which namespaces a restored tree gets: made anew, provided by the caller, or joined. Pure.

import { RepriseError } from "../../errors.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import { kindOfNamespace, NAMESPACE_KINDS, type NamespaceKind } from "./kinds.ts";
import { hasRoom } from "./registry.ts";
import type { JoinedNamespace, NamespacesRestoreOptions } from "./room.ts";

/** A namespace that tasks of the tree live in and that is not the engine's. */
export interface PlannedNamespace {
  readonly kind: NamespaceKind;
  /** Its number in the images; 0 for one that the images do not know (a new pid namespace for a clone). */
  readonly id: number;
  readonly role: "root" | "nested";
  /** The number of the user namespace that a nested one belongs to; undefined for the root task's. */
  readonly owner?: number;
  /** What a nested one of pids or users is in; undefined for the root task's. */
  readonly parent?: number;
  /** Who made a nested user namespace, in ids of the one that it is in. */
  readonly ownerUid?: number;
  /** The task that makes a time namespace for its children. Only who is not in it may make it: see `time.ts`. */
  readonly maker?: number;
  readonly origin:
    | { readonly how: "new" }
    /** Named by `--external` at the dump: the engine enters what `--inherit-fd` brings under this key. */
    | { readonly how: "external"; readonly key: string }
    | { readonly how: "joined"; readonly by: JoinedNamespace };
}

export interface NamespacesPlan {
  readonly all: readonly PlannedNamespace[];
  /** How the root task gets its namespace of a kind; undefined: it lives in the engine's. */
  ofRoot(kind: NamespaceKind): PlannedNamespace | undefined;
  /** The root's namespace of a kind when it is made anew. */
  made(kind: NamespaceKind): PlannedNamespace | undefined;
  /** The namespace of a kind by its number in the images; undefined for the engine's. */
  byId(kind: NamespaceKind, id: number | undefined): PlannedNamespace | undefined;
  /** Whether a user namespace is another one or somewhere in it; undefined stands for the root task's. */
  isWithin(inner: number | undefined, outer: number | undefined): boolean;
}

export interface NamespacesPlanOptions extends NamespacesRestoreOptions {
  /** Make the tree in a new pid namespace, or never in one. @default as it was */
  readonly newPidNamespace?: boolean;
  /** Which clocks these are here (time.ts: identifyClocks); undefined where there are no time namespaces. */
  readonly clocks?: string | undefined;
}

/**
 * Plans the namespaces of a tree.
 *
 * @throws RepriseError BAD_IMAGE, UNSUPPORTED, BAD_ARGUMENT
 */
export function planNamespaces(set: LoadedSet, options: NamespacesPlanOptions): NamespacesPlan {
  const all: PlannedNamespace[] = NAMESPACE_KINDS.flatMap(({ kind }) => ofKind(set, kind, options));
  const ofRoot = (kind: NamespaceKind): PlannedNamespace | undefined =>
    all.find((known) => known.kind === kind && known.role === "root");
  const byId: NamespacesPlan["byId"] = (kind, id) =>
    id === undefined ? undefined : all.find((known) => known.kind === kind && known.id === id);
  return {
    all,
    ofRoot,
    isWithin: (inner, outer) => {
      for (let at = inner; at !== outer; at = byId("user", at)?.parent)
        if (at === undefined) return false;
      return true;
    },
    made: (kind) => {
      const found = ofRoot(kind);
      return found?.origin.how === "new" ? found : undefined;
    },
    byId,
  };
}

function ofKind(
  set: LoadedSet,
  kind: NamespaceKind,
  options: NamespacesPlanOptions,
): PlannedNamespace[] {
  const { field } = kindOfNamespace(kind);
  const own = set.inventory.root_ids?.[field];
  const ofTask = (pid: number): number | undefined => {
    const id = set.tasks.get(pid)?.live?.ids[field];
    return id === own ? undefined : id;
  };
  const root = ofTask(set.rootPid);
  const joined = options.join?.find((one) => one.kind === kind);
  const planned: PlannedNamespace[] = [];
  if (joined !== undefined)
    planned.push({ kind, id: root ?? 0, role: "root", origin: { how: "joined", by: joined } });
  else if (wanted(set, kind, root, options))
    planned.push({ kind, id: root ?? 0, role: "root", origin: originOf(set, kind, root ?? 0) });
  for (const { pid, live } of set.tasks.values()) {
    if (live === undefined) continue;
    const id = ofTask(pid);
    if (id === root) continue;
    if (id === undefined) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot restore pid ${pid}: it was in another ${kind} namespace than the root task`,
        { pid },
      );
    }
    if (planned.some((known) => known.id === id)) continue;
    const origin = originOf(set, kind, id);
    planned.push({ kind, id, role: "nested", ...relationsOf(set, kind, id), origin });
  }
  if (kind === "time") return withMakers(set, planned);
  // User namespaces that no task lives in, but to which others belong.
  const relations = kind === "user" ? (set.inventory.reprise?.namespaces ?? []) : [];
  for (const { kind: flag, id } of relations) {
    if (flag !== kindOfNamespace(kind).flag || planned.some((known) => known.id === id)) continue;
    planned.push({
      kind,
      id,
      role: "nested",
      ...relationsOf(set, kind, id),
      origin: { how: "new" },
    });
  }
  return planned;
}

/** Time namespaces that tasks have made for their children, whether there are any yet or not. */
function withMakers(set: LoadedSet, planned: readonly PlannedNamespace[]): PlannedNamespace[] {
  const all = [...planned];
  for (const { pid, live } of set.tasks.values()) {
    const id = live?.ids.children_time_ns_id;
    if (id === undefined) continue;
    const at = all.findIndex((known) => known.id === id);
    const known = all[at] ?? {
      kind: "time",
      id,
      role: "nested",
      ...relationsOf(set, "time", id),
      origin: { how: "new" },
    };
    all[at < 0 ? all.length : at] = { ...known, maker: pid };
  }
  return all;
}

function relationsOf(
  set: LoadedSet,
  kind: NamespaceKind,
  id: number,
): Pick<PlannedNamespace, "owner" | "parent" | "ownerUid"> {
  const { flag } = kindOfNamespace(kind);
  const relation = set.inventory.reprise?.namespaces.find(
    (one) => one.kind === flag && one.id === id,
  );
  if (relation === undefined) return {};
  const { user_ns_id, pid_ns_id } = set.tasks.get(set.rootPid)?.live?.ids ?? {};
  const { owner, parent, owner_uid } = relation;
  const ofRoot = kind === "user" ? user_ns_id : pid_ns_id;
  const isUser = (other: number): boolean =>
    other !== user_ns_id && other !== set.inventory.root_ids?.user_ns_id;
  // The root task makes cgroup namespaces, in the cgroups that are to be their roots.
  return {
    ...(kind !== "cgroup" && isUser(owner) ? { owner } : {}),
    ...(parent === undefined || parent === ofRoot ? {} : { parent }),
    ...(owner_uid === undefined ? {} : { ownerUid: owner_uid }),
  };
}

/** A clone gets a new pid namespace even where the original had none, or none even where it had one. */
function wanted(
  set: LoadedSet,
  kind: NamespaceKind,
  root: number | undefined,
  options: NamespacesPlanOptions,
): boolean {
  if (kind === "pid" && options.newPidNamespace !== undefined) return options.newPidNamespace;
  if (root !== undefined || kind !== "time") return root !== undefined;
  // The clocks of outside, which may be others here: after another boot, on another machine.
  return (
    options.clocks !== undefined && set.timens !== undefined && set.timens.clocks !== options.clocks
  );
}

function originOf(set: LoadedSet, kind: NamespaceKind, id: number): PlannedNamespace["origin"] {
  const { net, pid } = set.namespaces;
  const key =
    kind === "net" ? net.get(id)?.netns.ext_key : kind === "pid" ? pid.get(id)?.ext_key : undefined;
  if (key !== undefined) return { how: "external", key };
  if (!hasRoom(kind)) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot restore the tree: it was in a ${kind} namespace of its own, which cannot be restored yet`,
    );
  }
  return { how: "new" };
}
