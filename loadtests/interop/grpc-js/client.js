// A grpc-js client that resolves xds:///service: a number on its input is so many calls, the answers come as one line of JSON.
const grpc = require('@grpc/grpc-js');
require('@grpc/grpc-js-xds').register();

const client = new grpc.Client('xds:///service', grpc.credentials.createInsecure());
const same = (bytes) => bytes;

function call() {
  return new Promise((resolve) => {
    const deadline = new Date(Date.now() + 5000);
    client.makeUnaryRequest('/test.Service/Name', same, same, Buffer.alloc(0), { deadline }, (error, answer) => {
      resolve(error ? `error ${error.code}: ${error.details}` : answer.toString());
    });
  });
}

require('readline').createInterface({ input: process.stdin }).on('line', async (line) => {
  const answers = [];
  for (let left = Number(line); left > 0; left -= 1) {
    answers.push(await call());
  }
  console.log(JSON.stringify(answers));
}).on('close', () => process.exit(0));
