// --cgroup-props and --cgroup-props-file: which settings of cgroups are saved, by controller, in YAML (criu(8)):
//
//     "memory":
//      - "strategy": "merge"
//      - "properties": ["memory.limit_in_bytes"]
//
// The parser is loaded by who gives one of the two.

import { readFileSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import type { PropertyLists } from "../objects/cgroups/properties.ts";
import { errnoOf } from "../proc/procfs.ts";
import type { CriuOptions } from "./options.ts";

type PropertyChange = PropertyLists extends ReadonlyMap<string, infer Change> ? Change : never;

/**
 * The changes that the options ask for; those of the file come last.
 *
 * @throws RepriseError BAD_ARGUMENT
 */
export async function cgroupProperties({ values }: CriuOptions): Promise<PropertyLists> {
  const changes = new Map<string, PropertyChange>();
  const text = values["cgroup-props"];
  const file = values["cgroup-props-file"];
  if (text !== undefined) await addLists(changes, text, "--cgroup-props");
  if (file !== undefined) await addLists(changes, readLists(file), `--cgroup-props-file ${file}`);
  return changes;
}

function readLists(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    const errno = errnoOf(error) ?? "unknown error";
    throw new RepriseError("BAD_ARGUMENT", `cannot read --cgroup-props-file ${file}: ${errno}`, {
      hint: "Relative paths start at the work directory.",
      cause: error,
    });
  }
}

async function addLists(
  changes: Map<string, PropertyChange>,
  text: string,
  from: string,
): Promise<void> {
  const { parseDocument, isMap } = await import("yaml");
  // A controller may come twice; the second one changes what the first one made.
  const document = parseDocument(text, { uniqueKeys: false });
  const [problem] = document.errors;
  if (problem !== undefined) throw wrong(from, problem.message.split("\n")[0] ?? "");
  if (document.contents === null) return;
  if (!isMap(document.contents)) throw wrong(from, "it is not a list of controllers");
  for (const { key, value } of document.contents.items) {
    const controller = String(key);
    // A pair's value is a node, which knows its plain form.
    const plain: unknown = value === null ? null : (value as { toJSON(): unknown }).toJSON();
    const change = readChange(plain, `${from}: controller ${controller}`);
    const before = change.strategy === "merge" ? changes.get(controller) : undefined;
    changes.set(
      controller,
      before === undefined
        ? change
        : { ...before, properties: [...before.properties, ...change.properties] },
    );
  }
}

/** CRIU's form is a list of two maps with a key each; one map with both says the same. */
function readChange(value: unknown, from: string): PropertyChange {
  const parts = Array.isArray(value) ? (value as unknown[]) : [value];
  if (!parts.every((part) => typeof part === "object" && part !== null))
    throw wrong(from, "it has no strategy and properties");
  const { strategy, properties, ...more } = Object.assign({}, ...parts) as Record<string, unknown>;
  const [unknown] = Object.keys(more);
  if (unknown !== undefined) throw wrong(from, `"${unknown}" is not known`);
  if (strategy !== "merge" && strategy !== "replace")
    throw wrong(from, "its strategy must be merge or replace");
  if (!Array.isArray(properties) || !properties.every((name) => isFileName(name)))
    throw wrong(from, "its properties must be a list of names of files");
  return { strategy, properties };
}

/** What is in the list is read below the directory of a cgroup, with root's rights. */
function isFileName(name: unknown): name is string {
  return typeof name === "string" && name !== "" && !name.includes("/") && !/^\.*$/.test(name);
}

function wrong(from: string, why: string): RepriseError {
  return new RepriseError("BAD_ARGUMENT", `cannot read ${from}: ${why}`, {
    hint: 'Its form is YAML: "CONTROLLER": [{"strategy": "merge"}, {"properties": ["FILE", …]}].',
  });
}
