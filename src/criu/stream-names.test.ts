import { copyFileSync, existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, onTestFinished, test } from "vitest";
import { takeImages } from "./stream-names.ts";

const FIXTURES = fileURLToPath(new URL("../../test/fixtures/criu-images/", import.meta.url));
/** Sets of one dump, which a restore reads alone. */
const SETS = readdirSync(FIXTURES).filter((name) =>
  existsSync(join(FIXTURES, name, "img/inventory.img")),
);

test.each(SETS)("takeImages() finds every image of CRIU's set %s by its content", (set) => {
  const from = join(FIXTURES, set, "img");
  const dir = mkdtempSync(join(tmpdir(), "reprise-names-"));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  const count = takeImages(dir, (name) => {
    if (!existsSync(join(from, name))) return false;
    copyFileSync(join(from, name), join(dir, name));
    return true;
  });
  const images = readdirSync(from).filter((name) => name.endsWith(".img"));
  expect(images.filter((name) => !existsSync(join(dir, name)))).toEqual([]);
  expect(count).toBe(readdirSync(dir).length);
});

test("takeImages() refuses a stream without an inventory", () => {
  expect(() => takeImages("/", () => false)).toThrow("the streamer has no image inventory.img");
});
