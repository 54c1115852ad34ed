import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { O_DIRECTORY, O_PATH } from "../sys/abi/fcntl.ts";
import { Witness } from "./witness.ts";

function makeDirectory(): string {
  const dir = mkdtempSync(join(tmpdir(), "reprise-witness-"));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  writeFileSync(join(dir, "settings"), "one\n", { mode: 0o640 });
  mkdirSync(join(dir, "below"));
  writeFileSync(join(dir, "below", "there"), "");
  return dir;
}

/** A witness of all of it. */
function look(dir: string): Witness {
  const witness = new Witness();
  onTestFinished(() => witness[Symbol.dispose]());
  witness.file(join(dir, "settings"));
  witness.owner(join(dir, "settings"));
  witness.owner(join(dir, "to come"));
  witness.list(join(dir, "below"));
  const fd = witness.keep(openSync(dir, O_PATH | O_DIRECTORY));
  witness.entry(fd, Buffer.from("."));
  witness.entry(fd, Buffer.from("below/there"));
  expect(witness.take()).toBe(true);
  return witness;
}

test("what nobody changes is the same; reading changes nothing", () => {
  const dir = makeDirectory();
  const witness = look(dir);
  expect(witness.holds()).toBe(true);
  readFileSync(join(dir, "settings"));
  readFileSync(join(dir, "below", "there"));
  readdirSync(dir);
  readdirSync(join(dir, "below"));
  expect(witness.holds()).toBe(true);
});

test.each<[string, (dir: string) => void]>([
  ["a file has another content", (dir) => writeFileSync(join(dir, "settings"), "two\n")],
  ["a file is longer", (dir) => appendFileSync(join(dir, "settings"), "two\n")],
  ["a file has another mode", (dir) => chmodSync(join(dir, "settings"), 0o600)],
  ["a file is there", (dir) => writeFileSync(join(dir, "to come"), "")],
  ["a directory has another name in it", (dir) => writeFileSync(join(dir, "below", "new"), "")],
  ["a name has gone", (dir) => rmSync(join(dir, "below", "there"))],
  ["an entry was touched", (dir) => chmodSync(join(dir, "below", "there"), 0o644)],
])("is not the same when %s", (_, change) => {
  const dir = makeDirectory();
  const witness = look(dir);
  change(dir);
  expect(witness.holds()).toBe(false);
});

test("tells what it saw", () => {
  const dir = makeDirectory();
  using witness = new Witness();
  const settings = witness.file(join(dir, "settings"));
  const owner = witness.owner(join(dir, "settings"));
  const missing = witness.owner(join(dir, "missing"));
  const list = witness.list(dir);
  expect(witness.file(join(dir, "missing"))).toBeUndefined();
  expect(witness.take()).toBe(true);
  expect(settings === undefined ? undefined : witness.text(settings)).toBe("one\n");
  expect(witness.permissions(owner)).toEqual({ mode: 0o100640, uid: 0, gid: 0 });
  expect(witness.isThere(missing)).toBe(false);
  expect(witness.names(list).toSorted()).toEqual(["below", "settings"]);
});

test("has no room for a file that is longer than told, nor for more names", () => {
  const dir = makeDirectory();
  using long = new Witness();
  long.file(join(dir, "settings"), 4);
  expect(long.take()).toBe(false);
  for (let index = 0; index < 20; index += 1)
    writeFileSync(join(dir, "below", `file-${index}`), "");
  using many = new Witness();
  many.list(join(dir, "below"), 128);
  expect(many.take()).toBe(false);
});
