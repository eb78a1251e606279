// A runner for cargo: runs a test binary of wasm32-wasip1 in Node, with the working folder and the settings of the tests.
import { readFile } from 'node:fs/promises';
import { WASI } from 'node:wasi';

const [binary, ...args] = process.argv.slice(2);
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => /^(RESBLOCK|PROPTEST|RUST)_/.test(name)));
const wasi = new WASI({ version: 'preview1', args: [binary, ...args], env, preopens: { '.': '.', [process.cwd()]: '.' } });
const module = await WebAssembly.compile(await readFile(binary));
process.exitCode = wasi.start(await WebAssembly.instantiate(module, wasi.getImportObject()));
