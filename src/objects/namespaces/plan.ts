// Which namespaces a restored tree gets: made anew, provided by the caller, or joined. Pure.

import { RepriseError } from "../../errors.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import { NAMESPACE_KINDS, type NamespaceKind } from "./kinds.ts";
import { hasRoom } from "./registry.ts";
import type { JoinedNamespace, NamespacesRestoreOptions } from "./room.ts";

/** A namespace that tasks of the tree live in and that is not the engine's. */
export interface PlannedNamespace {
  readonly kind: NamespaceKind;
  /** Its number in the images; 0 for one that the images do not know (a new pid namespace for a clone). */
  readonly id: number;
  readonly role: "root" | "nested";
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
  return {
    all,
    ofRoot,
    made: (kind) => {
      const found = ofRoot(kind);
      return found?.origin.how === "new" ? found : undefined;
    },
    byId: (kind, id) =>
      id === undefined ? undefined : all.find((known) => known.kind === kind && known.id === id),
  };
}

function ofKind(
  set: LoadedSet,
  kind: NamespaceKind,
  options: NamespacesPlanOptions,
): PlannedNamespace[] {
  const { field, nests } = NAMESPACE_KINDS.find((known) => known.kind === kind) ?? {};
  if (field === undefined) return [];
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
    if (nests !== true || id === undefined) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot restore pid ${pid}: it was in another ${kind} namespace than the root task`,
        { pid },
      );
    }
    if (planned.some((known) => known.id === id)) continue;
    planned.push({ kind, id, role: "nested", origin: originOf(set, kind, id) });
  }
  return planned;
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
