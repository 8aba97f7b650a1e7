"""Text over HTTP.

routes         `/v1/completions`, `/v1/chat/completions`, `/v1/models`
requests       OpenAI's requests: what is honoured; `messages`: those of a chat; `options`: objects in them
sampling       fields that change which token is chosen; `response_format` as a grammar
fields         published fields besides: neutral, accepted, or refused by name; `published`: how they are read
answers        OpenAI's answers as structs; `replies`: made of what was generated
idempotency    unstreamed texts under a key: made once, answered again
stream         answers sent token by token
responses/     `/v1/responses`, as a chat
search/        `/api/generations/search`: answers by their prompt
compare        `/api/compare`: one prompt with and without an intervention
tokens         `/tokenize` and its two
activations    `/api/activations`: what SAEs read in a given text
measuring/     `/api/score`: given texts, scored under several interventions
"""
