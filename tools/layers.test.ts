// Holds the layers of CONTRIBUTING.md: who imports whom, read from the import lines.
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { describe, expect, it } from "vitest";

const SRC = join(import.meta.dirname, "..", "src");

/** What each folder may import, besides itself and the files of every layer. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  "sys/abi": [],
  images: [],
  sys: ["sys/abi"],
  proc: ["sys/abi", "sys"],
  tracee: ["sys/abi", "sys", "proc"],
  kernel: ["sys/abi", "sys", "proc"],
  objects: ["sys/abi", "sys", "proc", "tracee", "kernel", "images"],
  engine: ["sys/abi", "sys", "proc", "tracee", "kernel", "images", "objects"],
  store: ["sys/abi", "sys", "proc", "tracee", "kernel", "images", "objects", "engine"],
  containers: ["sys/abi", "sys", "proc", "kernel", "images", "store"],
  cli: [
    "sys/abi",
    "sys",
    "proc",
    "tracee",
    "kernel",
    "images",
    "objects",
    "engine",
    "store",
    "containers",
  ],
  criu: ["sys/abi", "sys", "proc", "tracee", "kernel", "images", "objects", "engine", "store"],
};

/** Files of the top folder that every layer may import; but images only errors, and sys/abi nothing. */
const FOR_ALL = ["errors.ts", "log.ts", "version.ts"];
const FOR_IMAGES = ["errors.ts"];

const KOFFI_HOME = "sys/ffi.ts";

interface Import {
  readonly file: string;
  readonly target: string;
}

describe("layers", () => {
  const files = sourceFiles();
  const imports = files.flatMap((file) => importsOf(file, readFileSync(join(SRC, file), "utf8")));

  it("cover every folder", () => {
    expect(files.map(layerOf).filter((layer) => layer !== "" && !(layer in MAY_IMPORT))).toEqual(
      [],
    );
    expect(imports.length).toBeGreaterThan(0);
  });

  it("import only what is below them", () => {
    expect(imports.filter((one) => !isAllowed(one))).toEqual([]);
  });

  it("leave koffi to one file", () => {
    const users = files.filter((file) =>
      /["']koffi["']/.test(readFileSync(join(SRC, file), "utf8")),
    );
    expect(users).toEqual([KOFFI_HOME]);
  });

  it("export nothing by default", () => {
    const found = files.filter((file) =>
      /^export default/m.test(readFileSync(join(SRC, file), "utf8")),
    );
    expect(found).toEqual([]);
  });
});

describe("the rules of this test", () => {
  it.each([
    ["sys/ffi.ts", "proc/maps.ts", false],
    ["proc/maps.ts", "sys/ffi.ts", true],
    ["sys/abi/mman.ts", "errors.ts", false],
    ["images/codec.ts", "log.ts", false],
    ["images/codec.ts", "errors.ts", true],
    ["images/schema/x.ts", "images/codec.ts", true],
    ["objects/files/pipe.ts", "images/codec.ts", true],
    ["tracee/run.ts", "kernel/features.ts", false],
    ["tracee/run.ts", "images/codec.ts", false],
    ["criu/main.ts", "cli/main.ts", false],
    ["engine/restore.ts", "store/home.ts", false],
    ["engine/restore.ts", "../tools/build.ts", false],
    ["index.ts", "engine/restore.ts", true],
    ["log.ts", "sys/ffi.ts", false],
  ])("%s importing %s: %s", (file, target, allowed) => {
    expect(isAllowed({ file, target })).toBe(allowed);
  });

  it("see every form of import", () => {
    const text = `
      import { a } from "./a.ts";
      import type { b } from "../b.ts";
      export { c } from "./c.ts";
      const d = await import("./d.ts");
      import "./e.ts";
      type F = import("./f.ts").F;
      import g from "node:fs";
    `;
    const targets = importsOf("x/y.ts", text).map((one) => one.target);
    expect(targets.toSorted()).toEqual(["b.ts", "x/a.ts", "x/c.ts", "x/d.ts", "x/e.ts", "x/f.ts"]);
  });
});

function sourceFiles(): string[] {
  return readdirSync(SRC, { recursive: true, encoding: "utf8" }).filter(
    (file) => file.endsWith(".ts") && !file.endsWith(".test.ts"),
  );
}

function importsOf(file: string, text: string): Import[] {
  const found = text.matchAll(/(?:from\s+|import\s+|import\(\s*)["'](\.[^"']+)["']/g);
  return [...found].map((match) => {
    return { file, target: relative(".", join(dirname(file), match[1] ?? "")) };
  });
}

/** The folder below src that a file is in, sys/abi apart from sys; "" for the top. */
function layerOf(file: string): string {
  if (file.startsWith("sys/abi/")) return "sys/abi";
  return file.includes("/") ? file.slice(0, file.indexOf("/")) : "";
}

function isAllowed({ file, target }: Import): boolean {
  if (target.startsWith("..")) return false;
  const from = layerOf(file);
  const to = layerOf(target);
  // The library's front door may import all; the other files of the top import only one another.
  if (from === "") return file === "index.ts" || to === "";
  if (to === "") {
    const allowed = from === "sys/abi" ? [] : from === "images" ? FOR_IMAGES : FOR_ALL;
    return allowed.includes(target);
  }
  return from === to || (MAY_IMPORT[from] ?? []).includes(to);
}
